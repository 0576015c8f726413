"""The monitor in real trainings of the transformers Trainer."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers as hf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

import attnwatch.lightning
from attnwatch import AttnwatchWarning, ConfigurationError, NoAttentionError, RunStatus
from attnwatch.statistics import Statistic
from attnwatch.transformers import AttentionMonitor
from tests.support.equality import assert_same_history
from tests.support.models import TOKENS, gpt, llama, t5, token_ids
from tests.support.transformers_training import STEPS, Noting, Sequences, tensorboard_in, train, trainer
from tests.support.versions import EARLY

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


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


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = llama()

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_history_is_that_of_lightning(accumulated, tmp_path):
    ours = AttentionMonitor(every_n_steps=2)
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
    ).fit(Module(), DataLoader(Sequences(), batch_size=2))
    first, second = ours.history, theirs.history
    assert first.steps.tolist() == second.steps.tolist() == [0, 2, 4, 6, 8, 10]
    assert [f"model.{site}" for site in first.sites] == list(second.sites)
    # Early trainers train with (and log) the sum over all predictions, divided by the number of labels, of which the
    # first of each sequence is not predicted.
    scale = (TOKENS - 1) / TOKENS if EARLY else 1
    np.testing.assert_allclose(first.loss, scale * second.loss, rtol=1e-5)
    for name in Statistic.registry:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_training_is_bit_identical(options, tmp_path):
    options |= {"eval_strategy": "steps", "eval_steps": 7, "gradient_accumulation_steps": 2}
    plain = train(directory=tmp_path, model=llama(dropout=0.1), **options)
    state = torch.get_rng_state()
    monitor = AttentionMonitor(every_n_steps=1)
    watched = train(monitor, directory=tmp_path, model=llama(dropout=0.1), **options)
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    for (name, first), second in zip(plain.model.named_parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(first, second), name
    assert monitor.history.steps.tolist() == list(range(STEPS))
    assert np.isfinite(monitor.history["normalized_entropy"]).all()
    np.testing.assert_allclose(monitor.history.loss, np.reshape(plain.losses, (-1, 2)).sum(1), rtol=1e-5)


def test_resumed_equals_uninterrupted(tmp_path):
    options = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 8}
    uninterrupted = AttentionMonitor(every_n_steps=3, flush_every=2, num_query_rows=5)
    train(uninterrupted, **options)
    resumed = AttentionMonitor(every_n_steps=3, flush_every=2, num_query_rows=5)
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-8"), **options)
    assert len(resumed.history) == 7
    assert_same_history(resumed.history, uninterrupted.history)
    again = AttentionMonitor(every_n_steps=3, flush_every=2, num_query_rows=5)
    train(again, resume_from_checkpoint=True, max_steps=STEPS + 4, **options)  # from the last one
    assert again.history.steps.tolist() == [*uninterrupted.history.steps, 21]


def test_numbers_are_in_the_log_history(tmp_path):
    monitor = AttentionMonitor(every_n_steps=2, flush_every=2)
    run = train(monitor, directory=tmp_path)
    entries = [entry for entry in run.state.log_history if "attention/normalized_entropy" in entry]
    history = monitor.history
    for entry in entries:
        index = history.steps.tolist().index(entry["step"])
        assert entry["attention/normalized_entropy"] == pytest.approx(history["normalized_entropy"][index].mean(), 1e-5)
        assert "attention/risk" not in entry  # nothing can be said yet
    assert len(entries) >= 4
    json.dumps(run.state.log_history, allow_nan=False)  # as checkpoints keep it


def test_tensorboard_has_the_tags_of_lightning(tmp_path, monkeypatch):
    options = tensorboard_in(tmp_path / "ours", monkeypatch)
    train(AttentionMonitor(every_n_steps=2), directory=tmp_path, **options)
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="theirs")
    pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[attnwatch.lightning.AttentionMonitor(every_n_steps=2)],
    ).fit(Module(), DataLoader(Sequences(), batch_size=2))
    ours, theirs = (EventAccumulator(str(directory)).Reload() for directory in (tmp_path / "ours", logger.log_dir))
    for kind in ("scalars", "images", "tensors"):
        tags = [{tag for tag in each.Tags()[kind] if tag.startswith("attention")} for each in (ours, theirs)]
        assert tags[0] == tags[1]
        assert tags[0], kind
    steps = [event.step for event in ours.Scalars("attention/entropy")]
    assert steps == list(range(0, STEPS, 2))
    assert len(list((tmp_path / "ours").iterdir())) == 1  # the Trainer's own event file


def test_other_reports_get_scalars(tmp_path):
    seen = {}

    class Report(hf.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.setdefault(state.global_step, {}).update(logs)

    Report.__module__ = "transformers.integrations.ours"
    run = trainer(Report(), AttentionMonitor(every_n_steps=4), directory=tmp_path)
    run.train()
    assert {0, 4, 8, 12, 16} <= {step for step, logs in seen.items() if "attention/entropy" in logs}
    assert run.state.global_step == STEPS  # the state is not the one that reports were shown


@pytest.mark.parametrize("when", ["raises", "is interrupted"])
def test_everything_is_as_before_after_a_training_that_fails(when, tmp_path):
    class Failing(Noting):
        def training_step(self, *args, **options):
            if self.state.global_step == 3:
                raise KeyboardInterrupt if when == "is interrupted" else ValueError("mine")
            return super().training_step(*args, **options)

    monitor, model = AttentionMonitor(every_n_steps=1), llama()
    run = trainer(monitor, directory=tmp_path, model=model, trainer_class=Failing)
    with pytest.raises((ValueError, KeyboardInterrupt)):
        run.train()
    assert "training_step" not in vars(run)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    observed = len(monitor.history)
    model(input_ids=token_ids(2))
    assert len(monitor.history) == observed == 3


def test_trainer_is_as_before_after_training(tmp_path):
    first, second = AttentionMonitor(), AttentionMonitor()
    run = train(first, directory=tmp_path)
    assert "training_step" not in vars(run)
    run.remove_callback(first)
    run.add_callback(second)
    run.train()
    assert len(second.history) == 2


def test_finding_stops_the_training(tmp_path):
    class Poisoned(Noting):
        def training_step(self, model, *args, **options):
            if self.state.global_step == 6:
                model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = torch.nan
            return super().training_step(model, *args, **options)

    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding={"non_finite": "stop"})
    with pytest.warns(AttnwatchWarning, match="non_finite since step 6"):
        run = train(monitor, directory=tmp_path, trainer_class=Poisoned)
    assert 7 <= run.state.global_step <= 9
    assert monitor.diagnosis.status is RunStatus.UNSTABLE
    found = []
    told = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding=lambda *arguments: found.append(arguments))
    run = train(told, directory=tmp_path, trainer_class=Poisoned)
    ((finding, the_trainer, model),) = found
    assert (finding.kind, the_trainer, model) == ("non_finite", run, run.model)
    assert run.state.global_step == STEPS


def test_seq2seq_trainer(tmp_path):
    monitor = AttentionMonitor(every_n_steps=4)
    run = train(
        monitor,
        directory=tmp_path,
        model=hf.T5ForConditionalGeneration(hf.T5Config(**t5().config.to_diff_dict() | {"decoder_start_token_id": 0})),
        trainer_class=hf.Seq2SeqTrainer,
        arguments_class=hf.Seq2SeqTrainingArguments,
        eval_strategy="epoch",
    )
    assert set(monitor.coverage().values()) == {"observed"}
    assert any("EncDecAttention" in site for site in monitor.history.sites)
    assert np.isfinite(monitor.history.loss).all()
    assert run.state.global_step == STEPS


@pytest.mark.slow
def test_compiled_model(tmp_path):
    monitor = AttentionMonitor(every_n_steps=2)
    train(monitor, directory=tmp_path, torch_compile=True, torch_compile_backend="aot_eager", max_steps=6)
    assert np.isfinite(monitor.history["normalized_entropy"]).all()
    assert len(monitor.history) == 3


class Own(nn.Module):
    """Of no package."""

    def __init__(self):
        super().__init__()
        self.model = gpt()

    def forward(self, input_ids, labels):
        loss = self.model(input_ids).float().square().mean()
        return {"loss": loss}


def test_model_of_no_package(tmp_path):
    monitor = AttentionMonitor(every_n_steps=5)
    train(monitor, directory=tmp_path, model=Own())
    assert set(monitor.coverage().values()) == {"observed"}


def test_loss_that_the_model_does_not_compute(tmp_path):
    monitor = AttentionMonitor(every_n_steps=1)
    run = train(monitor, directory=tmp_path, label_smoothing_factor=0.1)
    np.testing.assert_allclose(monitor.history.loss, run.losses, rtol=1e-6)


def test_user_errors_stop_before_the_first_step(tmp_path):
    with pytest.raises(ConfigurationError, match="two AttentionMonitor"):
        train(AttentionMonitor(), AttentionMonitor(), directory=tmp_path)
    with pytest.raises(ConfigurationError, match="`sites`: 'nowhere' matches none"):
        train(AttentionMonitor(sites=["nowhere"]), directory=tmp_path)
    with pytest.raises(NoAttentionError):
        train(AttentionMonitor(), directory=tmp_path, model=nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="among the `callbacks` of a transformers Trainer"):
        AttentionMonitor().on_train_begin(None, None, None)
