"""Watching is harmless, honest and cheap."""

import contextlib
import copy
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnwatch import AttnwatchWarning
from attnwatch.attention import Accumulator
from attnwatch.recorder import AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import (
    HEADS,
    LAYERS,
    WIDTH,
    FusedAttention,
    bert,
    doge,
    gpt,
    llama,
    padding_mask,
    seeded,
    t5,
    token_ids,
)

DROPOUT = 0.2


def torch_encoder() -> nn.Module:
    def build():
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, dropout=DROPOUT, batch_first=True)
        return nn.Sequential(nn.Embedding(50, WIDTH), nn.TransformerEncoder(layer, LAYERS))

    return seeded(build)


MODELS = {
    "gpt": lambda: gpt(dropout=DROPOUT),
    "llama": lambda: llama(dropout=DROPOUT),
    "llama, eager": lambda: llama("eager", dropout=DROPOUT),
    "bert": lambda: bert(dropout=DROPOUT),
    "torch encoder": torch_encoder,
}


def loss_of(model: nn.Module, step: int) -> Tensor:
    output = model(token_ids(seed=step))
    output = output if isinstance(output, Tensor) else output[0]
    return output if output.ndim == 0 else output.square().mean()


def train(model: nn.Module, *, watched: bool, steps: int = 4) -> dict:
    """What a training run leaves behind."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = {"losses": [], "gradients": [], "random states": []}
    watching = AttentionRecorder(model, every_n_steps=2, num_query_rows=3) if watched else contextlib.nullcontext()
    with watching as recorder:
        for step in range(steps):
            with recorder.step(step) if watched else contextlib.nullcontext():
                loss = loss_of(model, step)
                loss.backward()
            run["losses"].append(loss.detach())
            run["gradients"].append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            run["random states"].append(torch.get_rng_state())
            optimizer.step()
            optimizer.zero_grad()
        run["weights"] = {name: value.clone() for name, value in model.state_dict().items()}
        if watched:
            assert set(recorder.coverage().values()) == {"observed"}
    return run


# Harmless


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_training_is_bit_identical(build):
    torch.testing.assert_close(train(build(), watched=True), train(build(), watched=False), rtol=0, atol=0)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_evaluation_is_bit_identical(build):
    """PyTorch's inference fast path is taken as before."""
    model = build().eval()
    expected = loss_of(model, 0)
    with AttentionRecorder(model) as recorder:
        assert loss_of(model, 0).equal(expected)
        with recorder.step(0):
            assert loss_of(model, 0).equal(expected)


class Traced(FusedAttention):
    """Keeps weak references to what the attention is given; autograd holds on to the same tensors."""

    given: list[weakref.ref]

    def heads(self, x: Tensor) -> list[Tensor]:
        heads = super().heads(x)
        self.given.extend(weakref.ref(tensor) for tensor in heads)
        return heads


@pytest.mark.parametrize("has_backward", [True, False], ids=["backward", "no backward"])
def test_no_graph_is_kept_alive(has_backward: bool):
    Traced.given = []
    model = gpt(Traced)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        for step in range(2):
            with recorder.step(step):
                loss = loss_of(model, step)
                if has_backward:
                    loss.backward()
            recorder.record_loss(loss)
        del loss
        gc.collect()
        assert len(Traced.given) == 2 * LAYERS * 3
        assert not any(reference() is not None for reference in Traced.given)


def attributes(model: nn.Module) -> list[dict]:
    """Everything that the modules hold, containers copied."""
    return [
        {name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
        for module in model.modules()
    ]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_close(build, error: type[BaseException] | None):
    model = build()
    before, function = attributes(model), F.scaled_dot_product_attention
    expectation = pytest.raises(error) if error else contextlib.nullcontext()
    with expectation, AttentionRecorder(model) as recorder, recorder.step(0):
        loss_of(model, 0)
        if error:
            raise error
    assert attributes(model) == before
    assert F.scaled_dot_product_attention is function


class Failing(FusedAttention):
    fails: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("out of memory")
        return super().forward(x)


def test_training_goes_on_after_an_error_inside_a_step():
    """A batch that was too large, say. Later calls belong to their own sites, or to none."""
    model = gpt(Failing)

    def one_step(recorder: AttentionRecorder) -> None:
        with recorder.step(1):
            F.scaled_dot_product_attention(*torch.randn(3, 1, HEADS, 5, 8))  # outside of every site
            loss_of(model, 1)

    with AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder:
        model.layers[1]["attention"].fails = True
        with pytest.raises(RuntimeError, match="out of memory"), recorder.step(0):
            loss_of(model, 0)
        model.layers[1]["attention"].fails = False
        loss_of(model, 0)  # outside of a step
        one_step(recorder)
        history = recorder.history()
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        one_step(recorder)
        expected = recorder.history()
    assert history.steps.tolist() == [1]
    np.testing.assert_array_equal(history["entropy"], expected["entropy"])


def test_calls_outside_of_a_step_are_not_observed():
    model = gpt()
    with AttentionRecorder(model, every_n_steps=2) as recorder:
        loss_of(model, 0)
        with recorder.step(0):
            pass
        loss_of(model, 0)
        with recorder.step(1):
            loss_of(model, 1)
        assert len(recorder.history()) == 0


def test_watched_model_can_be_copied_and_its_weights_stay_plain():
    model = gpt()
    keys = list(model.state_dict())
    with AttentionRecorder(model) as recorder, recorder.step(0):
        assert list(model.state_dict()) == keys
        twin = copy.deepcopy(model)
        loss_of(twin, 0)
        assert "observed" not in recorder.coverage().values()
        loss = loss_of(model, 0)
    assert set(recorder.coverage().values()) == {"observed"}
    assert loss_of(twin, 0).equal(loss)


def test_error_while_watching_gives_one_site_up(monkeypatch):
    sums = Accumulator.sums

    def failing_for_two_heads(accumulator, inputs, rows):
        if inputs.num_heads == 2:
            raise RuntimeError("no kernel for this")
        return sums(accumulator, inputs, rows)

    monkeypatch.setattr(Accumulator, "sums", failing_for_two_heads)
    model = nn.ModuleList([nn.MultiheadAttention(WIDTH, heads) for heads in (4, 2, 8)])
    x = torch.randn(5, 3, WIDTH, requires_grad=True)

    def three_steps(recorder: AttentionRecorder) -> None:
        for step in range(3):
            with recorder.step(step):
                for attention in model:
                    attention(x, x, x)[0].sum().backward()

    with AttentionRecorder(model, every_n_steps=1) as recorder:
        with pytest.warns(AttnwatchWarning) as warned:
            three_steps(recorder)
        history = recorder.history()
    assert [str(warning.message) for warning in warned] == [
        "attnwatch: '1' is no longer watched, training continues: RuntimeError: no kernel for this"
    ]
    reason = "watching failed with RuntimeError: no kernel for this"
    assert history.coverage == {"0": "observed", "1": reason, "2": "observed"}
    assert history.steps.tolist() == [0, 1, 2]
    is_nan = np.isnan(history["entropy"][:, :, :4])
    assert is_nan[:, 1].all()
    assert not is_nan[:, [0, 2]].any()


class ChangingHeads(nn.Module):
    """The kernel takes it, but there is no statistic per head where the heads differ from call to call."""

    def forward(self, x: Tensor) -> Tensor:
        for heads in (2, 4):
            query = x.unflatten(-1, (heads, -1)).transpose(1, 2)
            x = F.scaled_dot_product_attention(query, query, query).transpose(1, 2).flatten(2)
        return x


def test_real_error_gives_the_site_up():
    model, x = ChangingHeads(), torch.randn(2, 5, WIDTH)
    expected = model(x)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        with (
            pytest.warns(AttnwatchWarning, match="'ChangingHeads' is no longer watched, training continues"),
            recorder.step(0),
        ):
            assert model(x).equal(expected)
        with recorder.step(1):
            assert model(x).equal(expected)  # no second warning, which would be an error
    assert recorder.coverage()["ChangingHeads"].startswith("watching failed with RuntimeError")


def test_failing_transfer_loses_observations_but_no_training():
    model = gpt()

    def one_step(step: int, device: str = "cpu") -> None:
        with recorder.step(step):
            loss_of(model, step)
            recorder.record_loss(torch.ones((), device=device))

    with AttentionRecorder(model, every_n_steps=1, flush_every=1) as recorder:
        one_step(0, "meta")  # what has no values can't be transferred
        with pytest.warns(AttnwatchWarning, match="observations since the last flush are lost; training continues"):
            one_step(1)
        one_step(2)
        assert recorder.history().steps.tolist() == [1, 2]


# Honest


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_implementation_is_never_switched(implementation: str):
    model = llama(implementation)
    with AttentionRecorder(model) as recorder, recorder.step(0):
        assert model.config._attn_implementation == implementation
        loss_of(model, 0)
        assert model.config._attn_implementation == implementation
    assert model.config._attn_implementation == implementation


def test_layer_that_is_not_called_is_nan_and_named():
    model = nn.ModuleList([FusedAttention(), FusedAttention()])
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            model[0](torch.randn(2, 5, WIDTH))
        history = recorder.history()
    assert all(np.isnan(history[name][0, 1]).all() for name in Statistic.registry)
    assert history.coverage["1"].startswith("not called in an observed step")


def test_layers_that_can_not_be_read_are_nan_and_named():
    model = doge()
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            loss_of(model, 0)
        recorder.record_loss(1.0)
        history = recorder.history()
    assert len(history) == 1
    assert all(np.isnan(history[name]).all() for name in Statistic.registry)
    assert not any(reason == "observed" for reason in history.coverage.values())


@pytest.mark.parametrize(("batch", "tokens"), [(1, 5), (3, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("num_query_rows", [None, 4])
def test_small_batches(batch: int, tokens: int, num_query_rows: int | None):
    module = seeded(FusedAttention)
    with AttentionRecorder(module, num_query_rows=num_query_rows) as recorder:
        with recorder.step(0):
            module(torch.randn(batch, tokens, WIDTH))
        history = recorder.history()
    assert history.coverage == {"FusedAttention": "observed"}
    assert np.isnan(history["entropy"]).all() == (tokens == 1)
    assert np.isnan(history["content_sensitivity"]).all() == (batch == 1 or tokens == 1)


def test_nan_in_the_weights_is_reported():
    model = gpt()
    with AttentionRecorder(model) as recorder:
        with torch.no_grad():
            model.layers[1]["attention"].projection.weight[0, 0] = torch.nan  # in the query of the first head
        with recorder.step(0):
            loss_of(model, 0)
        history = recorder.history()
    assert history["nonfinite"][0].tolist() == [[0] * HEADS, [1] + [0] * (HEADS - 1)]
    assert np.isnan(history["entropy"][0, 1, 0])
    assert np.isfinite(history["entropy"][0, 1, 1:]).all()


def test_padded_queries_do_not_count():
    """Whatever stands in the padding, the numbers are those of the sequences alone."""
    model, mask = bert(), padding_mask("right")
    histories = []
    for seed in (0, 1):
        ids = torch.where(mask.bool(), token_ids(), token_ids(seed=seed))
        with AttentionRecorder(model, num_query_rows=None) as recorder:
            with recorder.step(0):
                model(input_ids=ids, attention_mask=mask)
            histories.append(recorder.history())
    for name in Statistic.registry:
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-5, err_msg=name)


# Cheap


class Waits(TorchDispatchMode):
    """Names of the operations that would wait for a device: reading a value, or a shape that depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if any(waiting in name for waiting in self.WAITING):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def transfers(monkeypatch) -> list[str]:
    """Names of the tensor methods that bring values to the host, as they are called."""
    called, within = [], []  # a torch function mode calls a method that it has seen once more, from within
    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        original = getattr(Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            called.extend([] if within else [name])
            within.append(name)
            try:
                return original(self, *args, **kwargs)
            finally:
                within.pop()

        monkeypatch.setattr(Tensor, name, counted)
    return called


MASKED = {"input_ids": token_ids(), "attention_mask": padding_mask("left")}
BATCHES = {"gpt": {"ids": token_ids()}, "torch encoder": {"input": token_ids()}}


@pytest.mark.parametrize("name", [*MODELS, "t5"])
def test_nothing_waits_for_the_device_during_a_step(name: str, transfers: list[str]):
    model = t5() if name == "t5" else MODELS[name]()
    batch = BATCHES.get(name, MASKED) | ({"decoder_input_ids": token_ids()} if name == "t5" else {})

    def waits() -> list[str]:
        transfers.clear()
        with Waits() as mode:
            output = model(**batch)
            (output if isinstance(output, Tensor) else output[0]).square().mean().backward()
        return transfers + mode.seen

    of_the_model = waits()
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=3) as recorder:
        for step in range(3):
            with recorder.step(step):
                assert waits() == of_the_model
            transfers.clear()
            recorder.record_loss(torch.ones(()))
            assert not transfers
    assert set(recorder.coverage().values()) == {"observed"}


def test_nothing_waits_for_the_device_during_a_step_of_the_optimizer(transfers: list[str]):
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def waits() -> list[str]:
        transfers.clear()
        with Waits() as mode:
            optimizer.step()
        return transfers + mode.seen

    with AttentionRecorder(model, every_n_steps=1, optimizers=optimizer) as recorder:
        for step in range(2):
            with recorder.step(step):
                loss_of(model, step).backward()
                transfers.clear()
                with Waits() as mode:
                    recorder.read_parameters()
                assert transfers + mode.seen == []
            assert waits() == []
    assert np.isfinite(recorder.history()["update_ratio"]).all()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("flush_every", [1, 4])
def test_one_transfer_per_flush(layers: int, flush_every: int, transfers: list[str]):
    model = gpt(layers=layers)
    with AttentionRecorder(model, every_n_steps=1, flush_every=flush_every) as recorder:
        for step in range(1 + 2 * flush_every):
            with recorder.step(step):
                loss = loss_of(model, step)
            recorder.record_loss(loss)
        assert recorder.num_observations == 2 * flush_every
        assert transfers.count("cpu") == 2


@pytest.mark.slow
def test_import_loads_no_framework():
    slow = {"lightning", "pytorch_lightning", "transformers", "tensorboard", "matplotlib", "torch._dynamo"}
    code = f"import sys, attnwatch, attnwatch.capture, attnwatch.recorder; print(*{slow} & {{*sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
