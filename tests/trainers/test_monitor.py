"""The monitor in real trainings by each trainer."""

import contextlib

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from torch.utils.data import DataLoader
from transformers.modeling_utils import AttentionInterface

import attnwatch.lightning
import attnwatch.transformers
from attnwatch import AttnwatchWarning, ConfigurationError, RunStatus
from attnwatch.statistics import Statistic
from tests.support.equality import assert_same_history, assert_same_weights
from tests.support.lightning_training import BatchModule
from tests.support.models import TOKENS, llama, token_ids
from tests.support.trainings import STEPS
from tests.support.transformers_training import Noting, Sequences, tensorboard_in, train
from tests.support.versions import EARLY, GETS_FUNCTIONS

# Trainers give hints on workers and intervals; what attnwatch itself warns of stays an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


@pytest.mark.parametrize(
    ("training", "options"),
    [
        ("lightning", {}),
        ("lightning", {"bf16": True}),
        ("transformers", {}),
        ("transformers", {"bf16": True}),
        ("transformers", {"gradient_checkpointing": True}),
    ],
    ids=str,
    indirect=["training"],
)
def test_training_is_bit_identical(training, options):
    options = {"accumulate": 2, "validate_every": 7, **options}
    plain = training.train(model=llama(dropout=0.1), **options)
    state = torch.get_rng_state()
    monitor = training.callbacks.AttentionMonitor(every_n_steps=1)
    watched = training.train(monitor, model=llama(dropout=0.1), **options)
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(plain.model, watched.model)
    assert monitor.history.steps.tolist() == list(range(STEPS))
    assert np.isfinite(monitor.history["normalized_entropy"]).all()
    np.testing.assert_allclose(monitor.history.loss, plain.step_losses, rtol=1e-5)


def test_killed_and_resumed_equals_uninterrupted(training):
    def monitor():
        return training.callbacks.AttentionMonitor(every_n_steps=3, flush_every=2, num_query_rows=5)

    def kill(model, step):
        if step == 13:
            raise KeyboardInterrupt

    uninterrupted, resumed = monitor(), monitor()
    training.train(uninterrupted, save_every=20)
    with pytest.raises(training.interruption):
        training.train(monitor(), before_batch=kill, save_every=8)
    training.train(resumed, checkpoint=8)
    assert len(resumed.history) == 7
    assert_same_history(resumed.history, uninterrupted.history)


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()], ids=["no error", "error", "ctrl-c"])
def test_everything_is_put_back_after_training(training, error):
    def fail(model, step):
        if error and step == 4:
            raise error

    lookup, sdpa = getattr(AttentionInterface, GETS_FUNCTIONS), F.scaled_dot_product_attention
    model, monitor = llama(), training.callbacks.AttentionMonitor(every_n_steps=1)
    with pytest.raises((ValueError, training.interruption)) if error else contextlib.nullcontext():
        training.train(monitor, model=model, before_batch=fail, steps=8)
    assert getattr(AttentionInterface, GETS_FUNCTIONS) is lookup
    assert F.scaled_dot_product_attention is sdpa
    assert "training_step" not in vars(training.trainer)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model(input_ids=token_ids(2))
    assert monitor.history.steps.tolist() == list(range(4 if error else 8))


def test_second_training_starts_anew(training):
    monitor, model = training.callbacks.AttentionMonitor(every_n_steps=4), llama()
    training.train(monitor, model=model, steps=12)
    training.train(monitor, model=model, steps=6)
    assert monitor.history.steps.tolist() == [0, 4]


def poison(model, step):
    if step == 6:
        model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = torch.nan


def test_chosen_finding_stops_the_training(training):
    monitor = training.callbacks.AttentionMonitor(
        every_n_steps=1, flush_every=1, on_finding={"non_finite": "stop"}, checkup=False
    )
    with pytest.warns(AttnwatchWarning, match="non_finite since step 6: .* at 1 of 2 sites"):
        run = training.train(monitor, before_batch=poison)
    assert 7 <= run.num_steps <= 9
    assert monitor.diagnosis.status is RunStatus.UNSTABLE
    assert monitor.history["nonfinite"][-1].max() == 1


def test_a_function_is_told_of_findings_once(training):
    told = []
    monitor = training.callbacks.AttentionMonitor(
        every_n_steps=1, flush_every=1, on_finding=lambda *arguments: told.append(arguments), checkup=False
    )
    run = training.train(monitor, before_batch=poison, steps=12)
    ((finding, trainer, module),) = told
    assert finding.kind == "non_finite"
    assert trainer is run.trainer
    assert (module.model if training.model_path else module) is run.model
    assert run.num_steps == 12


def test_sites_that_do_not_exist_are_an_error_before_the_first_step(training):
    def fail(model, step):
        raise AssertionError("a step began")

    with pytest.raises(ConfigurationError, match=r"`sites`: 'encoder.\*' matches none of the model's sites: model"):
        training.train(training.callbacks.AttentionMonitor(sites=["encoder.*"]), before_batch=fail)


# Numbers of one trainer are those of the other.


class InOrder(Noting):
    """Batches in the order of the dataset, and an optimizer without a schedule."""

    def get_train_dataloader(self):
        return DataLoader(Sequences(), batch_size=2)

    def create_optimizer_and_scheduler(self, num_training_steps):
        self.create_optimizer()
        self.create_scheduler(num_training_steps)

    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        return self.lr_scheduler


class Module(BatchModule):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_history_is_that_of_lightning(accumulated, tmp_path):
    ours = attnwatch.transformers.AttentionMonitor(every_n_steps=2)
    train(
        ours,
        directory=tmp_path,
        trainer_class=InOrder,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=0.0,
        max_steps=12,
    )
    theirs = attnwatch.lightning.AttentionMonitor(every_n_steps=2)
    pl.Trainer(
        max_steps=12,
        accumulate_grad_batches=accumulated,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[theirs],
    ).fit(Module(llama()), DataLoader(Sequences(), batch_size=2))
    first, second = ours.history, theirs.history
    assert first.steps.tolist() == second.steps.tolist() == [0, 2, 4, 6, 8, 10]
    assert [f"model.{site}" for site in first.sites] == list(second.sites)
    # Early trainers train with (and log) the sum over all predictions, divided by the number of labels, of which the
    # first of each sequence is not predicted.
    scale = (TOKENS - 1) / TOKENS if EARLY else 1
    np.testing.assert_allclose(first.loss, scale * second.loss, rtol=1e-5)
    for name in Statistic.registry:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_tensorboard_has_the_tags_of_lightning(tmp_path, monkeypatch):
    options = tensorboard_in(tmp_path / "ours", monkeypatch)
    train(attnwatch.transformers.AttentionMonitor(every_n_steps=2), directory=tmp_path, **options)
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="theirs")
    pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[attnwatch.lightning.AttentionMonitor(every_n_steps=2)],
    ).fit(Module(llama()), DataLoader(Sequences(), batch_size=2))
    ours, theirs = (EventAccumulator(str(directory)).Reload() for directory in (tmp_path / "ours", logger.log_dir))
    for kind in ("scalars", "images", "tensors"):
        tags = [{tag for tag in each.Tags()[kind] if tag.startswith("attention")} for each in (ours, theirs)]
        assert tags[0] == tags[1]
        assert tags[0], kind
    steps = [event.step for event in ours.Scalars("attention_details/entropy")]
    assert steps == list(range(0, STEPS, 2))
    falling, constant = (
        np.array([event.value for event in each.Scalars("attention_details/learning_rate")]) for each in (ours, theirs)
    )
    np.testing.assert_allclose(constant, 1e-3, rtol=1e-6)
    assert (np.diff(falling, prepend=1e-3 + 1e-9) < 0).all()
    assert len(list((tmp_path / "ours").iterdir())) == 1  # the Trainer's own event file
    rows = [each.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content for each in (ours, theirs)]
    settings = [hparams.parse_session_start_info_plugin_data(row).hparams for row in rows]
    assert {each["attention/verdict"].string_value for each in settings} == {"undetermined"}
    assert settings[0]["max_steps"].number_value == STEPS
    assert not any("token" in name or "dir" in name for name in settings[0])
