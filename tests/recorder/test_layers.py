"""Layer statistics in trainings: which passes and steps count, and that nothing else changes."""

import contextlib
import copy
import gc
import re
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnwatch import AttentionHistory, AttentionRecorder, ConfigurationError, prune_heads
from attnwatch.layers import LayerStatistic
from tests.support.models import HEADS, LAYERS, WIDTH, FusedAttention, llama, seeded, token_ids

OF_OUTPUTS = {"output_norm", "output_kurtosis", "token_cosine"}


class Block(nn.Module):
    def __init__(self, dropout: float = 0.1):
        super().__init__()
        self.norm, self.attention, self.dropout = nn.LayerNorm(WIDTH), FusedAttention(), nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.attention(self.norm(x)))


class Model(nn.Module):
    """Blocks, each under activation checkpointing of one kind or none."""

    def __init__(self, checkpointing: str | None = None, dropout: float = 0.1):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, 50)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(LAYERS))
        self.checkpointing = checkpointing

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            if self.checkpointing is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpointing == "reentrant")
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), ids.flatten())


def model_with(checkpointing: str | None = None, dropout: float = 0.1) -> Model:
    return seeded(lambda: Model(checkpointing, dropout))


def train(
    model, *, watched=True, steps=6, micro_batches=1, every=1, autocast=False, optimizers=None, **options
) -> tuple[dict, AttentionHistory | None]:
    """What a training leaves behind, and the history."""
    torch.manual_seed(5)
    optimizers = optimizers or [torch.optim.AdamW(model.parameters(), lr=1e-2)]
    losses, gradients = [], []
    recorder = AttentionRecorder(model, every_n_steps=every, optimizers=optimizers, **options) if watched else None
    with recorder or contextlib.nullcontext():
        for step in range(steps):
            for micro_batch in range(micro_batches):
                with recorder.step(step) if recorder else contextlib.nullcontext():
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                        loss = model(token_ids(seed=micro_batches * step + micro_batch))
                    loss.backward()
                    losses.append(loss.detach())
            gradients.append([each.grad.clone() for each in model.parameters()])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        history = recorder.history() if recorder else None
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    left = {"losses": losses, "gradients": gradients, "weights": weights, "random": torch.get_rng_state()}
    return left | {"states": [each.state_dict()["state"] for each in optimizers]}, history


@pytest.mark.parametrize("checkpointing", [None, "reentrant", "not reentrant"])
@pytest.mark.parametrize("options", [{}, {"micro_batches": 3, "every": 2}, {"autocast": True}], ids=str)
def test_training_is_bit_identical(checkpointing, options):
    watched, history = train(model_with(checkpointing), **options)
    plain, _ = train(model_with(checkpointing), watched=False, **options)
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert history.layers.keys() == LayerStatistic.registry.keys()
    for name, column in history.layers.items():
        assert column.shape == (len(history), LAYERS), name
        assert np.isfinite(column).all(), name


@pytest.mark.parametrize("checkpointing", ["reentrant", "not reentrant"])
def test_second_forward_of_checkpointing_does_not_count(checkpointing):
    (_, found), (_, expected) = (train(model_with(each)) for each in (checkpointing, None))
    for name in LayerStatistic.registry:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    model = model_with(checkpointing)
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(token_ids()).backward()
    values = recorder.state_dict()["pending"]["layers"]["values"]
    assert {len(each) for each in values.values()} == {1}


def test_micro_batches_are_those_of_one_large_batch():
    """Outputs are means over the micro-batches, gradients the sums that the optimizer takes."""
    model, whole = model_with(dropout=0.0), model_with(dropout=0.0)
    ids = token_ids(4)
    histories = []
    for each, parts in ((model, ids.split(2)), (whole, [ids])):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        with AttentionRecorder(each, optimizers=optimizer) as recorder:
            for part in parts:
                with recorder.step(0):
                    (each(part) / len(parts)).backward()
            optimizer.step()
            histories.append(recorder.history())
    found, expected = histories
    for name in LayerStatistic.registry.keys() - {"output_kurtosis"}:  # a ratio within a micro-batch
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


def test_passes_without_gradient_do_not_count_beside_a_training():
    """Neither validation before the training pass nor a teacher after it."""
    _, expected = train(model_with(dropout=0.0), steps=1)
    model = model_with(dropout=0.0)
    with AttentionRecorder(model) as recorder, recorder.step(0):
        with torch.no_grad():
            model(token_ids(seed=7))
        model(token_ids()).backward()
        with torch.no_grad():
            model(token_ids(seed=8))
    history = recorder.history()
    for name in OF_OUTPUTS:
        np.testing.assert_array_equal(history[name], expected[name], err_msg=name)


def test_validation_alone_has_no_outputs():
    model = model_with(dropout=0.0)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        with recorder.step(0):
            model(token_ids()).backward()
        with recorder.step(1), torch.no_grad():
            recorder.record_loss(model(token_ids()))
        history = recorder.history()
    for name in OF_OUTPUTS:
        assert np.isnan(history[name]).all(1).tolist() == [False, True]


def test_forward_that_raises_and_is_repeated_counts_once():
    _, expected = train(model_with(dropout=0.0), steps=1)
    model = model_with(dropout=0.0)
    failing = model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with AttentionRecorder(model) as recorder, recorder.step(0):
        with pytest.raises(ZeroDivisionError):
            model(token_ids(seed=3))
        failing.remove()
        model(token_ids()).backward()
    for name in OF_OUTPUTS:
        np.testing.assert_array_equal(recorder.history()[name], expected[name], err_msg=name)


def test_only_steps_that_are_observed_are_looked_at():
    model = model_with()
    optimizer = torch.optim.AdamW(model.parameters())
    hooks = []
    with AttentionRecorder(model, every_n_steps=2, optimizers=optimizer) as recorder:
        for step in range(4):
            with recorder.step(step):
                hooks.append(len(model.blocks[0]._forward_hooks))
                model(token_ids()).backward()
            assert not model.blocks[0]._forward_hooks
            optimizer.step()
        history = recorder.history()
    assert hooks[1] == hooks[3] == 0
    assert hooks[2] == 1
    assert history.steps.tolist() == [0, 2]
    assert np.isfinite(history["update_ratio"]).all()


def test_nothing_is_left_on_the_optimizer_and_the_recorder_can_be_attached_again():
    model = model_with()
    optimizer = torch.optim.AdamW(model.parameters())
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    recorder = AttentionRecorder(model, every_n_steps=1, optimizers=[optimizer, optimizer])
    assert [len(each) for each in hooks] == [1, 1]
    recorder.close()
    assert [len(each) for each in hooks] == [0, 0]
    recorder.attach()
    with recorder:
        with recorder.step(0):
            model(token_ids()).backward()
        optimizer.step()
    assert [len(each) for each in hooks] == [0, 0]
    assert np.isfinite(recorder.history()["update_ratio"]).all()
    copy.deepcopy(optimizer).step()


def test_recorder_that_nobody_closes_ends_with_its_last_reference():
    model = model_with()
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = AttentionRecorder(model, optimizers=optimizer)
    with recorder.step(0):
        model(token_ids()).backward()
    optimizer.step()
    reference = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert reference() is None
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_wrong_optimizers():
    message = "`optimizers` must be a torch.optim.Optimizer or a list of them, got 'adam'."
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        AttentionRecorder(model_with(), optimizers="adam")


def test_block_that_is_replaced_is_read_no_longer():
    model = model_with(dropout=0.0)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        for step in range(2):
            with recorder.step(step):
                model(token_ids()).backward()
            model.blocks[1] = Block(dropout=0.0)
        history = recorder.history()
    assert np.isfinite(history["weight_norm"][:, 0]).all()
    assert np.isnan(history["weight_norm"][:, 1]).tolist() == [False, True]


def test_without_an_optimizer_and_without_a_backward():
    model = model_with()
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(token_ids())
    history = recorder.history()
    for name in ("update_ratio", "gradient_norm"):
        assert np.isnan(history[name]).all()
    for name in LayerStatistic.registry.keys() - {"update_ratio", "gradient_norm"}:
        assert np.isfinite(history[name]).all()


def test_update_of_several_optimizers_is_that_of_all():
    """Matrices by one and the rest by another, as people use Muon."""

    def optimizers(model, split: bool):
        parameters = list(model.parameters())
        groups = [[each for each in parameters if (each.ndim > 1) == kind] for kind in (True, False)]
        return [torch.optim.SGD(group, lr=0.1) for group in (groups if split else [parameters])]

    histories = []
    for split in (True, False):
        model = model_with(dropout=0.0)
        histories.append(train(model, optimizers=optimizers(model, split), steps=2)[1])
    found, expected = histories
    np.testing.assert_allclose(found["update_ratio"], expected["update_ratio"], rtol=1e-6)


def test_frozen_parameters_count_as_weights_only():
    model = model_with(dropout=0.0)
    for block in model.blocks:
        block.attention.projection.requires_grad_(False)
    history, whole = record(model), record(model_with(dropout=0.0))
    np.testing.assert_array_equal(history["weight_norm"], whole["weight_norm"])
    assert (history["gradient_norm"] < 0.99 * whole["gradient_norm"]).all()


def test_gradients_that_are_read_before_they_are_clipped():
    """The loop says when they are complete and unscaled; what comes later in the step does not count."""
    model = model_with(dropout=0.0)
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            (1024 * model(token_ids())).backward()
            for parameter in model.parameters():
                parameter.grad /= 1024
            recorder.read_parameters()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        history = recorder.history()
    _, expected = train(model_with(dropout=0.0), steps=1)
    np.testing.assert_allclose(history["gradient_norm"], expected["gradient_norm"], rtol=1e-4)


def test_optimizer_that_steps_inside_of_the_block():
    model = model_with(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with AttentionRecorder(model, optimizers=optimizer) as recorder:
        with recorder.step(0):
            model(token_ids()).backward()
            optimizer.step()
            optimizer.zero_grad()
        history = recorder.history()
    expected = record(model_with(dropout=0.0))
    for name in ("gradient_norm", "weight_norm"):
        np.testing.assert_array_equal(history[name], expected[name], err_msg=name)
    assert np.isfinite(history["update_ratio"]).all()


def test_quantized_weights_have_no_norm():
    model = model_with()
    block = model.blocks[1]
    block.table = nn.Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False)
    history = record(model)
    assert np.isfinite(history["weight_norm"][0, 0])
    assert np.isnan(history["weight_norm"][0, 1])
    assert np.isfinite(history["gradient_norm"]).all()


def record(model) -> AttentionHistory:
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(token_ids()).backward()
    return recorder.history()


def test_bfloat16():
    history, expected = record(model_with(dropout=0.0).to(torch.bfloat16)), record(model_with(dropout=0.0))
    for name in ("weight_norm", "gradient_norm", "output_norm"):
        np.testing.assert_allclose(history[name], expected[name], rtol=0.05, err_msg=name)


def test_half_precision_does_not_overflow():
    model = model_with().to(torch.float16)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.fill_(6e4)
    number = sum(each.numel() for each in model.blocks[0].parameters())
    np.testing.assert_allclose(record(model)["weight_norm"], 6e4 * number**0.5, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_outputs_of_compiled_models_are_nan_and_nothing_is_compiled_again():
    model = model_with(dropout=0.0)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters())
    with AttentionRecorder(compiled, every_n_steps=2, optimizers=optimizer) as recorder:
        for step in range(5):
            with recorder.step(step), torch._dynamo.config.patch(error_on_recompile=step > 0):
                compiled(token_ids()).backward()
            optimizer.step()
            optimizer.zero_grad()
        history = recorder.history()
    for name in LayerStatistic.registry:
        assert np.isnan(history[name]).all() == (name in OF_OUTPUTS), name


def test_blocks_that_are_not_called_have_no_output():
    """A container of layers' parts has no forward of its own."""
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"attn": FusedAttention()}) for _ in range(2))})
    with AttentionRecorder(model) as recorder, recorder.step(0):
        for layer in model["layers"]:
            layer["attn"](torch.randn(2, 5, WIDTH))
    history = recorder.history()
    assert np.isnan(history["output_norm"]).all()
    assert np.isfinite(history["weight_norm"]).all()


@pytest.mark.parametrize("shape", [(0, 5, WIDTH), (2, 1, WIDTH), (1, 1, WIDTH)])
def test_empty_batches_and_single_tokens(shape):
    model = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True))
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(torch.randn(shape))
    history = recorder.history()
    assert len(history) == 1
    assert np.isnan(history["token_cosine"]).all()


def test_history_keeps_the_columns_with_their_steps(tmp_path):
    _, history = train(model_with(), steps=8, every=2)
    assert history.first(2)["gradient_norm"].shape == (2, LAYERS)
    np.testing.assert_array_equal(history.at(np.array([1, 3]))["update_ratio"], history["update_ratio"][[1, 3]])
    history.save(tmp_path / "history.npz")
    loaded = AttentionHistory.load(tmp_path / "history.npz")
    assert loaded.layers.keys() == history.layers.keys() == history.layer_statistics.keys()
    for name, column in history.layers.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], column)
    with pytest.raises(KeyError, match=r"'gradient' is not in this history; it has: .*entropy.*, gradient_norm"):
        history["gradient"]


def test_file_of_an_older_version_has_nan(tmp_path):
    _, history = train(model_with(), steps=3)
    history.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in file.files if not name.startswith("layer/")})
    old = AttentionHistory.load(tmp_path / "old.npz")
    assert old.layers.keys() == LayerStatistic.registry.keys()
    for column in old.layers.values():
        assert column.shape == (3, LAYERS)
        assert np.isnan(column).all()
    np.testing.assert_array_equal(old["entropy"], history["entropy"])


def test_file_with_a_column_of_another_length_is_refused(tmp_path):
    _, history = train(model_with(), steps=3)
    history.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "bad.npz", **arrays | {"layer/weight_norm": arrays["layer/weight_norm"][:2]})
    with pytest.raises(ValueError, match="its layer statistics do not have one number for each of 3 steps and 2 sites"):
        AttentionHistory.load(tmp_path / "bad.npz")


def test_weights_of_removed_heads_are_no_part_of_the_norm():
    model, histories = llama(), []
    for heads in ({}, {0: [0, 1]}):
        if heads:
            prune_heads(model, heads)
        with AttentionRecorder(model) as recorder, recorder.step(0):
            model(input_ids=token_ids())
        histories.append(recorder.history())
    before, after = histories
    assert after["weight_norm"][0, 0] < before["weight_norm"][0, 0]
    assert after["weight_norm"][0, 1] == before["weight_norm"][0, 1]
