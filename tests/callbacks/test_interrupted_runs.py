"""Trainings that end early or go on later: what the callbacks have observed until then, and what they tell of it."""

import contextlib
import csv
import math
import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch.nn.functional as F
import transformers as hf
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import attnwatch.callbacks.pictures as pictures_module
from attnwatch import AttnwatchWarning, ConfigurationError, PruningPlan, RunStatus
from attnwatch.lightning import AttentionMonitor, HeadPruning, LayerProbe, TokenDropping
from attnwatch.transformers import AttentionMonitor as TransformersMonitor
from attnwatch.transformers import TokenDropping as TransformersDropping
from attnwatch.utils.interception import is_intercepted
from tests.support.lightning_loggers import Kept, picture_steps, poison
from tests.support.lightning_training import Llama, batches
from tests.support.models import LAYERS, llama, token_ids
from tests.support.transformers_training import STEPS, Noting, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


def lightning_trainer(*callbacks, **options) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(callbacks=list(callbacks), accelerator="cpu", **{"max_epochs": 1} | silent | options)


def go_on(trainer: pl.Trainer, module: pl.LightningModule, *, epochs: int) -> None:
    trainer.fit_loop.max_epochs = epochs
    trainer.fit(module, batches(6))


# Training goes on


def test_second_fit_of_a_trainer_goes_on_with_the_history():
    monitor, kept = AttentionMonitor(every_n_steps=4), Kept()
    module, trainer = Llama(), lightning_trainer(monitor, logger=kept)
    for epochs in (1, 2, 3):
        go_on(trainer, module, epochs=epochs)
        assert monitor.diagnosis.step == monitor.history.steps[-1]
    assert monitor.history.steps.tolist() == [0, 4, 8, 12, 16]
    assert kept.steps("attention_details/entropy") == [0, 4, 8, 12, 16]
    assert np.isfinite(monitor.history["entropy"]).all()


@pytest.mark.parametrize("fails", [False, True])
def test_fit_that_trains_nothing_leaves_the_history(fails):
    class Failing(Llama):
        fails = False

        def on_fit_start(self):
            if self.fails:
                raise ValueError("mine")

    monitor, module = AttentionMonitor(every_n_steps=4), Failing()
    trainer = lightning_trainer(monitor)
    go_on(trainer, module, epochs=2)
    verdict, module.fails = str(monitor.diagnosis), fails
    with pytest.raises(ValueError, match="mine") if fails else contextlib.nullcontext():
        go_on(trainer, module, epochs=2)
    assert monitor.history.steps.tolist() == [0, 4, 8]
    assert str(monitor.diagnosis) == verdict


def test_new_model_or_trainer_begins_a_new_history():
    monitor, module = AttentionMonitor(every_n_steps=4), Llama()
    trainer = lightning_trainer(monitor)
    go_on(trainer, module, epochs=1)
    go_on(trainer, Llama(), epochs=2)
    assert monitor.history.steps.tolist() == [6, 8]
    go_on(lightning_trainer(monitor), module, epochs=1)
    assert monitor.history.steps.tolist() == [0, 4]


def test_findings_are_not_told_again_where_training_goes_on():
    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, checkup=False)
    module, trainer = Llama(lambda module, index: poison(module, 6)), lightning_trainer(monitor)
    with pytest.warns(AttnwatchWarning, match="non_finite"):
        go_on(trainer, module, epochs=1)
    go_on(trainer, module, epochs=2)  # a warning would be an error
    assert monitor.diagnosis.status is RunStatus.UNSTABLE


def test_all_callbacks_go_on():
    pruning = HeadPruning(0.5, guard=None, start=2, end=4, num_cuts=2)
    dropping = TokenDropping(0.5, min_tokens=2, first_layer=0, last_layer=LAYERS - 1)
    probe = LayerProbe(every_n_steps=3, batches=[{"input_ids": token_ids(8)}], targets=["position"])
    module, trainer = Llama(), lightning_trainer(pruning, dropping, probe)
    go_on(trainer, module, epochs=1)
    computed, cuts = dropping.dropper.layer_tokens, [cut.step for cut in pruning.cuts]
    assert cuts == [2, 4]
    go_on(trainer, module, epochs=2)
    assert [cut.step for cut in pruning.cuts] == cuts
    assert PruningPlan.of(module).num_removed == 4
    assert dropping.dropper.layer_tokens > computed
    assert [step for step, _ in probe.results] == [3, 6, 9, 12]


def test_training_goes_on_after_ctrl_c():
    def interrupt(module, batch_idx):
        if len(module.losses) == 3:
            module.losses.append(0.0)
            raise KeyboardInterrupt

    monitor = AttentionMonitor(every_n_steps=1)
    module, trainer = Llama(interrupt), lightning_trainer(monitor)
    with pytest.raises(SystemExit):
        go_on(trainer, module, epochs=1)
    assert monitor.history.steps.tolist() == [0, 1, 2]
    trainer.should_stop = False
    go_on(trainer, module, epochs=2)
    assert monitor.history.steps[:5].tolist() == [0, 1, 2, 3, 4]
    assert np.isfinite(monitor.history["entropy"]).all()


# Training is broken off


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_missing_after_a_lightning_training_that_is_broken_off(error, tmp_path):
    def fail(module, batch_idx):
        if batch_idx == 9:
            raise error

    monitor = AttentionMonitor(every_n_steps=2, flush_every=20)
    with pytest.raises((SystemExit, ValueError)):
        lightning_trainer(monitor, logger=CSVLogger(tmp_path)).fit(Llama(fail), batches(20))
    assert monitor.history.steps.tolist() == [0, 2, 4, 6, 8]
    assert monitor.diagnosis.step == 8
    rows = rows_of(tmp_path / "lightning_logs/version_0/metrics.csv")
    assert [int(row["step"]) for row in rows if row["attention_details/entropy"]] == [0, 2, 4, 6, 8]
    assert [int(row["step"]) for row in rows if row["attention_details/learning_rate"]] == [0, 8]


def test_finding_of_the_last_steps_is_told_when_training_is_broken_off():
    def fail(module, batch_idx):
        poison(module, batch_idx)
        if batch_idx == 8:
            raise ValueError("mine")

    monitor = AttentionMonitor(every_n_steps=1, flush_every=20, checkup=False)
    with pytest.warns(AttnwatchWarning, match="non_finite since step 6"), pytest.raises(ValueError, match="mine"):
        lightning_trainer(monitor).fit(Llama(fail), batches(20))
    assert monitor.diagnosis.status is RunStatus.UNSTABLE


class Failing(Noting):
    """Is interrupted at the step 9, in the training step or when it makes the next batch."""

    where = "training_step"

    def training_step(self, *args, **options):
        if self.where == "training_step" and self.state.global_step == 9:
            raise KeyboardInterrupt
        return super().training_step(*args, **options)

    def get_batch_samples(self, *args, **options):
        if self.where == "get_batch_samples" and self.state.global_step == 9:
            raise KeyboardInterrupt
        return super().get_batch_samples(*args, **options)


@pytest.mark.parametrize("where", ["training_step", "get_batch_samples"])
def test_nothing_is_missing_after_a_transformers_training_that_is_broken_off(where, tmp_path):
    monitor, attention = TransformersMonitor(every_n_steps=2, flush_every=20), F.scaled_dot_product_attention
    run = trainer(monitor, directory=tmp_path, trainer_class=type(where, (Failing,), {"where": where}))
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert F.scaled_dot_product_attention is attention
    assert monitor.diagnosis.step == monitor.history.steps[-1] == 8
    assert monitor.history.steps.tolist() == [0, 2, 4, 6, 8]


class WrongMetric(hf.TrainerCallback):
    """Raises outside of the trainer's steps, where no callback hears of it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            raise ValueError("mine")


def test_model_of_a_training_that_broke_off_between_steps_trains_again(tmp_path):
    """In the same process, as one does in a notebook."""

    def dropping() -> TransformersDropping:
        return TransformersDropping(0.5, min_tokens=4, first_layer=0, last_layer=LAYERS - 1)

    model, attention = llama(), F.scaled_dot_product_attention
    broken = [TransformersMonitor(every_n_steps=2), dropping()]
    with pytest.raises(ValueError, match="mine"):
        trainer(*broken, WrongMetric(), model=model, directory=tmp_path).train()
    monitor = TransformersMonitor(every_n_steps=2)
    trainer(monitor, dropping(), model=model, directory=tmp_path).train()
    assert monitor.history.steps.tolist() == list(range(0, STEPS, 2))
    assert not is_intercepted(model.model.layers[0])
    assert F.scaled_dot_product_attention is attention


# Pictures


def told(captured: str) -> list[str]:
    return [line for line in captured.splitlines() if "figures_every_n_steps" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "options", "expected"),
    [
        (math.inf, {}, None),
        (1e-9, {}, r"pictures come less often than every 2 steps \(`figures_every_n_steps`\): the last took .* m?s to"),
        (
            math.inf,
            {"flush_every": 4},
            r"pictures come every 4 steps, not every 2 \(`figures_every_n_steps`\): observations",
        ),
        (math.inf, {"every_n_steps": 5}, "pictures come every 5 steps, not every 2 "),
    ],
    ids=["followed", "no time", "flushed less often", "observed less often"],
)
def test_pictures_come_as_often_as_asked_or_it_is_told_why_not(share, options, expected, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(pictures_module, "_SHARE_OF_TIME", share)
    monitor = AttentionMonitor(**{"every_n_steps": 1, "figures_every_n_steps": 2} | options)
    logger = TensorBoardLogger(tmp_path)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        lightning_trainer(monitor, logger=logger).fit(Llama(), batches(12))
    messages = told("\n".join(record.getMessage() for record in caplog.records))
    if expected is None:
        assert messages == []
        assert picture_steps(logger) == [2, 4, 6, 8, 11]
    else:
        (message,) = messages
        assert re.search(expected, message)


def test_flush_of_their_own_is_for_pictures_that_are_wanted_more_often():
    assert AttentionMonitor(every_n_steps=10).part._options.observations_per_flush == 5
    assert AttentionMonitor(every_n_steps=10, figures_every_n_steps=20).part._options.observations_per_flush == 2
    assert AttentionMonitor(every_n_steps=10, figures_every_n_steps=None).part._options.observations_per_flush == 5
    assert AttentionMonitor(every_n_steps=10, figures_every_n_steps=20, flush_every=7).part._options.flush_every == 7


def test_two_monitors_that_were_used_before_are_refused_in_words():
    monitors = [AttentionMonitor(), AttentionMonitor()]
    for monitor in monitors:
        lightning_trainer(monitor).fit(Llama(), batches(2))
    for two in (monitors, monitors[:1] * 2):
        with pytest.raises(
            ConfigurationError, match="`callbacks` has two AttentionMonitor, but a trainer takes only one"
        ):
            lightning_trainer(*two).fit(Llama(), batches(2))
