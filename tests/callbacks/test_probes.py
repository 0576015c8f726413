"""Probes of the layers in real trainings of both trainers."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

import attnwatch.lightning
import attnwatch.transformers
from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.explain import LayerProbes, probe_layers
from tests.support.models import LAYERS, gpt, llama, token_ids
from tests.support.transformers_training import STEPS, Sequences, tensorboard_in, trainer
from tests.support.transformers_training import train as train_transformers

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

TARGETS = ["token", "position", "previous_token"]
BATCHES = [{"input_ids": token_ids(8, seed=seed) % 6 + 3} for seed in (1, 2)]
"""Of few words, so that each is in many sequences."""


class Module(pl.LightningModule):
    def __init__(self, model: nn.Module | None = None):
        super().__init__()
        self.model = model or llama(dropout=0.1)
        self.losses, self.forwards = [], 0
        self.model.register_forward_hook(self.count)

    def count(self, *args) -> None:
        self.forwards += 1

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train_lightning(*callbacks, module=None, ckpt_path=None, validation=Sequences(16), **options) -> Module:  # noqa: B008
    pl.seed_everything(0, verbose=False)
    module = module or Module()
    made = pl.Trainer(
        **{
            "max_steps": STEPS,
            "callbacks": list(callbacks),
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )
    loaders = [DataLoader(Sequences(), batch_size=2, shuffle=True)]
    if validation is not None:
        loaders.append(DataLoader(validation, batch_size=8, shuffle=True))
    made.fit(module, *loaders, ckpt_path=ckpt_path)
    return module


def lightning_probe(**options) -> attnwatch.lightning.LayerProbe:
    return attnwatch.lightning.LayerProbe(**{"every_n_steps": 8, "targets": TARGETS, "batches": BATCHES, **options})


def transformers_probe(**options) -> attnwatch.transformers.LayerProbe:
    return attnwatch.transformers.LayerProbe(**{"every_n_steps": 8, "targets": TARGETS, "batches": BATCHES, **options})


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def assert_same_results(first, second) -> None:
    assert [step for step, _ in first] == [step for step, _ in second]
    for (_, ours), (_, theirs) in zip(first, second, strict=True):
        assert_same(ours, theirs)


def assert_same(first: LayerProbes, second: LayerProbes) -> None:
    for name, ours in vars(first).items():
        theirs = getattr(second, name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, name


# Harmless


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=str)
@pytest.mark.parametrize("batches", [BATCHES, None], ids=["own", "validation"])
def test_lightning_training_is_bit_identical(options, batches):
    plain = train_lightning(**options)
    state = torch.get_rng_state()
    callback = lightning_probe(every_n_steps=4, batches=batches)
    watched = train_lightning(callback, **options)
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(plain, watched)
    assert [step for step, _ in callback.results] == [4, 8, 12, 16, 20]


@pytest.mark.parametrize(
    "options", [{}, {"bf16": True}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_transformers_training_is_bit_identical(options, tmp_path):
    options |= {"directory": tmp_path, "max_steps": 8}
    plain = train_transformers(model=llama(dropout=0.1), **options)
    state = torch.get_rng_state()
    callback = transformers_probe(every_n_steps=4)
    watched = train_transformers(callback, model=llama(dropout=0.1), **options)
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(plain.model, watched.model)
    assert [step for step, _ in callback.results] == [4, 8]


def test_it_costs_one_forward_for_each_batch():
    plain = train_lightning()
    callback = lightning_probe()
    watched = train_lightning(callback)
    assert [step for step, _ in callback.results] == [8, 16, STEPS]
    assert watched.forwards - plain.forwards == 3 * len(BATCHES)
    assert [found.num_forwards for _, found in callback.results] == [len(BATCHES)] * 3


def test_numbers_are_those_of_the_function():
    callback = lightning_probe(every_n_steps=None)
    module = train_lightning(callback)
    ((step, found),) = callback.results
    assert step == STEPS
    assert_same(found, probe_layers(module.model, BATCHES, targets=TARGETS))


# Resumable


def test_lightning_run_goes_on_from_a_checkpoint(tmp_path):
    uninterrupted = lightning_probe()
    train_lightning(uninterrupted, ModelCheckpoint(tmp_path, every_n_train_steps=10, save_top_k=-1, filename="{step}"))
    resumed = lightning_probe()
    module = train_lightning(resumed, ckpt_path=tmp_path / "step=10.ckpt")
    assert [step for step, _ in resumed.results] == [8, 16, STEPS]
    assert_same_results(resumed.results[:1], uninterrupted.results[:1])
    assert len(module.losses) == STEPS - 10


def test_transformers_run_goes_on_from_a_checkpoint(tmp_path):
    options = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 10}
    uninterrupted = transformers_probe()
    train_transformers(uninterrupted, **options)
    resumed = transformers_probe()
    train_transformers(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-10"), **options)
    assert_same_results(resumed.results, uninterrupted.results)


# Dashboards


def tags(directory) -> dict[str, set[str]]:
    events = EventAccumulator(str(directory)).Reload()
    return {kind: {tag for tag in events.Tags()[kind] if tag.startswith("probe")} for kind in ("scalars", "images")}


@pytest.mark.slow
def test_dashboards_have_curves_and_pictures(tmp_path, monkeypatch):
    callback = lightning_probe()
    logger = TensorBoardLogger(tmp_path, name="lightning", version="")
    train_lightning(callback, logger=logger)
    options = tensorboard_in(tmp_path / "transformers", monkeypatch)
    train_transformers(transformers_probe(), directory=tmp_path, **options)
    kinds = [f"probe_{name}{kind}" for name in TARGETS for kind in ("", "_selectivity")]
    expected = {
        "scalars": {f"{kind}/layer_{layer}" for kind in kinds for layer in range(LAYERS + 1)},
        "images": {f"probes/{name}" for name in TARGETS},
    }
    assert tags(logger.log_dir) == expected
    assert tags(tmp_path / "transformers") == expected
    events = EventAccumulator(logger.log_dir).Reload().Scalars("probe_token/layer_0")
    assert [event.step for event in events] == [8, 16, STEPS]
    expected = [(found.accuracy[0, 0] - found.baseline[0]).item() for _, found in callback.results]
    assert [event.value for event in events] == pytest.approx(expected)


def test_numbers_are_in_the_log_history(tmp_path):
    callback = transformers_probe()
    run = train_transformers(callback, directory=tmp_path)
    entries = {entry["step"]: entry for entry in run.state.log_history if "probe_position/layer_1" in entry}
    assert list(entries) == [8, 16, STEPS]
    for step, found in callback.results:
        assert entries[step]["probe_position/layer_1"] == pytest.approx(found.above_baseline[1, 1].item())
        assert entries[step]["probe_position_selectivity/layer_2"] == pytest.approx(found.selectivity[1, 2].item())
    json.dumps(run.state.log_history, allow_nan=False)


def test_curves_of_a_deep_model_are_bounded():
    callback = lightning_probe(targets=["token"], every_n_steps=None)
    train_lightning(callback, module=Module(llama(layers=20)), max_steps=1)
    numbers = callback.part._numbers(callback.results[0][1])
    assert len(numbers) == 2 * 12
    assert {"probe_token/layer_0", "probe_token/layer_20"} <= numbers.keys()


def test_what_was_skipped_has_no_curve_and_no_picture():
    infinite = [{"input_ids": token_ids(8) % 6 + 3, "labels": torch.rand(8)}]
    callback = lightning_probe(batches=infinite, targets=["token", "label"])
    train_lightning(callback)
    assert all(found.skipped == {"label": "the labels are not integers"} for _, found in callback.results)
    assert not any("label" in tag for tag in callback.part._numbers(callback.results[0][1]))
    assert callback.part._draw().keys() == {"probes/token"}


# Other ways to be called


def test_validation_data_of_the_transformers_trainer_is_probed(tmp_path):
    callback = transformers_probe(batches=None, num_batches=2, targets=None)
    made = trainer(callback, directory=tmp_path)
    made.eval_dataset = Sequences(16)
    made.train()
    found = callback.results[-1][1]
    assert found.num_forwards == 2
    assert {"next_token", "position"} <= {*found.targets, *found.skipped}
    assert "position" in found.targets


def test_a_plain_model_is_probed_with_a_function():
    def states(module, batch):
        x = [module.model.embedding(batch["input_ids"])]
        for layer in module.model.layers:
            x.append(x[-1] + layer["attention"](layer["norm"](x[-1])))
        return x

    class Plain(Module):
        def training_step(self, batch, batch_idx):
            return self.model(batch["input_ids"])

    callback = lightning_probe(hidden_states=states)
    train_lightning(callback, module=Plain(gpt()))
    assert callback.results[0][1].accuracy.shape == (len(TARGETS), LAYERS + 1)


def test_works_with_the_monitor():
    alone = attnwatch.lightning.AttentionMonitor(every_n_steps=2)
    train_lightning(alone)
    monitor, callback = attnwatch.lightning.AttentionMonitor(every_n_steps=2), lightning_probe()
    train_lightning(monitor, callback)
    np.testing.assert_array_equal(monitor.history["entropy"], alone.history["entropy"])
    assert len(callback.results) == 3


# What goes wrong


def test_failing_probes_warn_once_and_training_goes_on():
    batches = [{"input_ids": token_ids(8) + 1000}]  # ids that the model does not have
    callback = lightning_probe(batches=batches)
    with pytest.warns(AttnwatchWarning, match="LayerProbe failed, training continues: IndexError") as warned:
        module = train_lightning(callback)
    assert sum("LayerProbe failed" in str(each.message) for each in warned) == 1
    assert len(module.losses) == STEPS
    assert callback.results == []
    assert all(each.training for each in module.model.modules())


WRONG = {
    "target": ({"targets": ["tokens"]}, "`targets`: 'tokens' is unknown"),
    "tokenizer": ({"targets": ["word_start"]}, "'word_start' is derived from the text: pass `tokenizer`"),
    "no batches": ({"batches": []}, "`batches` is empty"),
    "no ids": ({"batches": [{"tokens": token_ids(8)}]}, "each batch must have `input_ids`"),
    "labels": (
        {"targets": None, "labels": {"own": [token_ids(8)]}},
        "`labels`: 'own' has 1 tensors for 2 batches",
    ),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_configuration_stops_before_the_first_step(options, message, tmp_path):
    module = Module()
    with pytest.raises(ConfigurationError, match=message):
        train_lightning(lightning_probe(**options), module=module)
    assert module.losses == []
    with pytest.raises(ConfigurationError, match=message):
        train_transformers(transformers_probe(**options), directory=tmp_path)


def test_nothing_to_probe_stops_before_the_first_step():
    module = Module()
    with pytest.raises(ConfigurationError, match="needs batches: give `batches`"):
        train_lightning(lightning_probe(batches=None), module=module, validation=None)
    with pytest.raises(ConfigurationError, match="no transformers model"):
        train_lightning(lightning_probe(), module=Module(gpt()))
    assert module.losses == []


def test_two_of_one_kind_are_refused():
    with pytest.raises(ConfigurationError, match="`callbacks` has two LayerProbe"):
        train_lightning(lightning_probe(), type("Another", (attnwatch.lightning.LayerProbe,), {})())
