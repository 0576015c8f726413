"""What the monitor says of a run: when, to whom, and what it does about it."""

import math
import sys
import warnings
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

import attnwatch.callbacks.pictures as pictures_module
import attnwatch.lightning
from attnwatch import AttnwatchWarning, RunStatus, Thresholds
from attnwatch.callbacks import verdicts
from attnwatch.diagnosis.findings.uniform_attention import UniformAttention
from attnwatch.statistics import Statistic
from tests.support.lightning_loggers import Kept, events_of, picture_steps, poison
from tests.support.lightning_training import Llama, train_epochs
from tests.support.models import WIDTH, llama

# What the history shows; tests/trainers/test_checkup.py has what the checkup finds.
AttentionMonitor = partial(attnwatch.lightning.AttentionMonitor, checkup=False)
pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


def messages(caught) -> list[str]:
    return [str(warning.message) for warning in caught if issubclass(warning.category, AttnwatchWarning)]


# To whom


@pytest.mark.slow
def test_tensorboard_gets_scalars_pictures_and_words(tmp_path):
    monitor = AttentionMonitor(every_n_steps=2, figures_every_n_steps=8)
    logger = TensorBoardLogger(tmp_path)
    train_epochs(monitor, steps=20, logger=logger)
    events = events_of(logger)
    tags = events.Tags()
    layered = [name for name, statistic in Statistic.registry.items() if statistic.per_layer]
    expected = {statistic.tag for statistic in Statistic.registry.values()} | {"attention_details/learning_rate"}
    expected |= {f"layers_{name}/layer_{layer}" for name in layered for layer in range(2)}
    assert expected <= set(tags["scalars"])
    curve = events.Scalars("layers_normalized_entropy/layer_1")
    assert [point.step for point in curve] == monitor.history.steps.tolist() == list(range(0, 20, 2))
    recorded = monitor.history["normalized_entropy"][:, 1].mean(-1)
    np.testing.assert_allclose([point.value for point in curve], recorded, rtol=1e-6)
    assert set(tags["images"]) == {f"attention_{kind}/{name}" for kind in ("heads", "layers") for name in layered}
    assert len(events.Images("attention_heads/normalized_entropy")) >= 2  # on the way, and at the end
    text = events.Tensors("attention/diagnosis/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "risk" in text


def test_every_logger_gets_the_scalars(tmp_path):
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    train_epochs(AttentionMonitor(every_n_steps=4), logger=loggers)
    rows = np.genfromtxt(tmp_path / "csv/lightning_logs/version_0/metrics.csv", delimiter=",", names=True)
    entropy = rows["attentionnormalized_entropy"]
    assert np.isfinite(entropy).sum() == 3
    events = events_of(loggers[1])
    np.testing.assert_allclose(
        entropy[np.isfinite(entropy)],
        [point.value for point in events.Scalars("attention/normalized_entropy")],
        rtol=1e-5,
    )


# When


def test_scalars_come_once_with_the_transfers():
    logger = Kept()
    train_epochs(
        AttentionMonitor(every_n_steps=1, flush_every=4), logger=logger, log_every_n_steps=1, limit_val_batches=0
    )
    assert logger.steps("attention_details/entropy") == list(range(12))
    assert logger.steps("layers_max_logit/layer_1") == list(range(12))
    assert logger.steps("attention/risk") == []  # it is nan so far
    assert logger.steps("attention_details/learning_rate") == [
        0,
        4,
        8,
        11,
    ]  # after the first step, then every four, and at the end
    for step, metrics in logger.rows:
        assert {type(step), *map(type, metrics.values())} <= {int, float}


class Metrics(pl.Callback):
    """Keeps what can be monitored, after every batch and at the end of every epoch."""

    def __init__(self):
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class OneSequence(Llama):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:1], batch_idx)


def test_metrics_are_there_from_the_first_step_and_up_to_date_when_an_epoch_ends():
    monitor, metrics = AttentionMonitor(every_n_steps=5), Metrics()
    train_epochs(monitor, OneSequence(), steps=8, epochs=2, callbacks=[metrics])
    assert monitor.history.steps.tolist() == [0, 5, 10, 15]
    entropy = monitor.history["normalized_entropy"].mean((1, 2))
    assert metrics.batches[0]["attention/normalized_entropy"] == pytest.approx(entropy[0])
    assert metrics.batches[6]["attention/normalized_entropy"] == pytest.approx(entropy[0])  # not yet transferred
    at_ends = [epoch["attention/normalized_entropy"] for epoch in metrics.epochs]
    assert at_ends == pytest.approx(entropy[[1, 3]])
    assert all(math.isnan(seen["attention_details/content_sensitivity"]) for seen in metrics.batches)  # of one sequence


def test_run_that_ends_within_an_epoch_is_judged_to_its_last_step(tmp_path):
    kept, tensorboard = Kept(), TensorBoardLogger(tmp_path)
    monitor = AttentionMonitor(every_n_steps=1)
    train_epochs(monitor, max_steps=8, logger=[kept, tensorboard])
    assert kept.steps("attention_details/entropy") == list(range(8))
    assert kept.steps("attention_details/learning_rate") == [0, 7]
    assert monitor.diagnosis.step == 7
    assert picture_steps(tensorboard) == [7]
    assert [text.step for text in events_of(tensorboard).Tensors("attention/diagnosis/text_summary")] == [7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "share_of_time", "expected"),
    [(4, math.inf, [4, 8]), (None, math.inf, [9]), (1, 1e-9, [1, 9])],
    ids=["every 4 steps", "at the end", "as time allows"],
)
def test_pictures_come_as_often_as_asked_and_as_time_allows(tmp_path, monkeypatch, every, share_of_time, expected):
    monkeypatch.setattr(pictures_module, "_SHARE_OF_TIME", share_of_time)
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, figures_every_n_steps=every, max_layer_curves=1)
    train_epochs(monitor, max_steps=10, logger=loggers, limit_val_batches=0)
    assert picture_steps(loggers[1]) == expected
    tags = events_of(loggers[1]).Tags()["scalars"]
    assert [tag for tag in tags if tag.startswith("layers_max_logit")] == ["layers_max_logit/layer_0"]


def test_words_come_when_something_is_found_and_at_the_end(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding="ignore")
    train_epochs(monitor, Llama(poison), logger=logger)
    words = events_of(logger).Tensors("attention/diagnosis/text_summary")
    assert [text.step for text in words] == [6, 11]
    assert "**non finite** since step 6" in words[0].tensor_proto.string_val[0].decode()
    risk = events_of(logger).Scalars("attention/risk")
    assert [point.step for point in risk if point.value == 1] == [6, 7, 8, 9, 11]  # the last two come together


# What is done about it


def test_early_stopping_on_risk_lets_a_healthy_run_go_on_and_stops_a_sick_one():
    def stopping():
        return EarlyStopping("attention/risk", divergence_threshold=0.8, patience=10**6, check_on_train_epoch_end=True)

    healthy, _ = train_epochs(AttentionMonitor(), epochs=6, callbacks=[stopping()])
    assert healthy.current_epoch == 6
    monitor = AttentionMonitor(every_n_steps=1, on_finding="ignore")
    sick, _ = train_epochs(monitor, Llama(poison), epochs=6, callbacks=[stopping()])
    assert sick.current_epoch == 1


# Every site counts as uniform, from the step on at which it is poisoned.
UNIFORM_WHEN_POISONED = {
    "thresholds": Thresholds(min_observations=7, min_steps=6, patience=1),
    "rules": [UniformAttention(enter=0, leave=0, growth=1e9, steps=0)],
}


def test_finding_that_warns_neither_stops_nor_takes_a_stop_back():
    options = {"every_n_steps": 1, "flush_every": 1, **UNIFORM_WHEN_POISONED}
    with pytest.warns(AttnwatchWarning) as caught:
        going_on, _ = train_epochs(AttentionMonitor(on_finding={"frozen_attention": "stop"}, **options), Llama(poison))
    assert [message.split()[1] for message in messages(caught)] == ["non_finite", "uniform_attention"]
    assert going_on.global_step == 12
    with pytest.warns(AttnwatchWarning):
        stopped, _ = train_epochs(AttentionMonitor(on_finding={"non_finite": "stop"}, **options), Llama(poison))
    assert stopped.global_step == 8


def test_wish_of_others_to_stop_is_left_alone():
    def stop(module, batch_idx):
        module.trainer.should_stop |= batch_idx == 3

    trainer, _ = train_epochs(AttentionMonitor(every_n_steps=1, on_finding="stop"), Llama(stop))
    assert trainer.global_step == 4


def test_uniform_attention_is_flagged():
    def flatten(module, batch_idx):
        for layer in module.model.model.layers:
            nn.init.zeros_(layer.self_attn.q_proj.weight)

    monitor = AttentionMonitor(every_n_steps=1, thresholds=Thresholds(min_steps=15), rules=[UniformAttention(steps=10)])
    with pytest.warns(AttnwatchWarning, match="uniform_attention since step 0"):
        train_epochs(monitor, Llama(flatten), steps=25)
    assert monitor.diagnosis.status is RunStatus.NOT_CONVERGING


# What is not observed


class HandwrittenAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states, **kwargs):
        states = self.projection(hidden_states)
        return (states @ states.mT).softmax(-1) @ states, None


class HardlyReadable(Llama):
    """All layers but the first compute attention by hand."""

    def __init__(self, layers: int):
        super().__init__()
        self.model = llama(layers=layers)
        for layer in self.model.model.layers[1:]:
            layer.self_attn = HandwrittenAttention()


def test_what_is_not_observed_is_named_once_per_fit():
    monitor = AttentionMonitor(every_n_steps=1)
    for module in (HardlyReadable(2), HardlyReadable(6)):
        with pytest.warns(AttnwatchWarning) as caught:
            train_epochs(monitor, module)
        (message,) = messages(caught)
        unread = len(module.model.model.layers) - 1
        assert message.startswith(
            f"attnwatch: {unread} of {unread + 1} attention sites are not observed. model.model.layers.1.self_attn: "
            "computes attention without"
        )
        assert message.count("model.model.layers") == min(unread, 3)
        assert message.endswith("; and 2 more, see coverage()") == (unread == 5)


# One run after the other


@pytest.mark.slow
def test_findings_of_a_resumed_run_are_not_told_again(tmp_path):
    """It goes on past the finding that stopped it; nothing that was logged is logged again."""
    options = {"every_n_steps": 1, "flush_every": 1, "on_finding": "stop", "figures_every_n_steps": 6}
    path, kept, tensorboard = tmp_path / "stopped.ckpt", Kept(), TensorBoardLogger(tmp_path / "resumed")
    with pytest.warns(AttnwatchWarning, match="non_finite"):
        stopped, _ = train_epochs(AttentionMonitor(**options), Llama(poison))
    stopped.save_checkpoint(path)
    torch.load(path, weights_only=True)
    resumed, _ = train_epochs(AttentionMonitor(**options), epochs=2, logger=[kept, tensorboard], ckpt_path=path)
    assert (stopped.global_step, resumed.global_step) == (8, 20)
    assert kept.steps("attention_details/nonfinite") == list(range(8, 20))
    assert picture_steps(tensorboard) == [12, 19]


def test_finding_is_told_again_where_the_checkpoint_does_not_fit(tmp_path):
    options = {"every_n_steps": 1, "flush_every": 1}
    with pytest.warns(AttnwatchWarning, match="non_finite"):
        trainer, _ = train_epochs(AttentionMonitor(**options), Llama(poison))
    trainer.save_checkpoint(tmp_path / "poisoned.ckpt")
    with pytest.warns(AttnwatchWarning) as caught:
        train_epochs(AttentionMonitor(**options, sites=["*layers.1*"]), epochs=2, ckpt_path=tmp_path / "poisoned.ckpt")
    assert [message.split(":")[1].split()[0] for message in messages(caught)] == ["the", "non_finite"]


def test_resumed_run_has_its_own_wish_for_pictures(tmp_path):
    trainer, _ = train_epochs(AttentionMonitor(every_n_steps=1), steps=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    logger, monitor = TensorBoardLogger(tmp_path), AttentionMonitor(every_n_steps=1, figures_every_n_steps=None)
    train_epochs(monitor, steps=3, epochs=2, ckpt_path=tmp_path / "three.ckpt", logger=logger)
    assert picture_steps(logger) == [5]


@pytest.mark.slow
def test_second_fit_says_everything_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_module, "_SHARE_OF_TIME", 1e-9)
    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding="stop", figures_every_n_steps=4)
    for loggers in ([Kept()], [Kept(), TensorBoardLogger(tmp_path)]):
        with pytest.warns(AttnwatchWarning, match="non_finite since step 6"):
            trainer, _ = train_epochs(monitor, Llama(poison), logger=loggers, limit_val_batches=0)
        assert trainer.global_step == 8
        assert loggers[0].steps("attention_details/nonfinite") == list(range(8))
    assert picture_steps(loggers[1]) == [4, 7]
    short = Kept()
    train_epochs(monitor, steps=3, logger=short)
    assert short.steps("attention_details/learning_rate") == [0, 2]

    def fail(module, batch_idx):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        train_epochs(monitor, Llama(fail))
    assert monitor.diagnosis is None


# What fails


class FullDisk(Logger):
    """A logger whose directory takes no more."""

    name, version = "full", 0

    def log_metrics(self, metrics, step=None):
        raise OSError(28, "No space left on device")

    def log_hyperparams(self, params):
        pass


class Wrapping(FullDisk):
    """Says something else, as Lightning's TensorBoardLogger does."""

    def log_metrics(self, metrics, step=None):
        try:
            super().log_metrics(metrics, step)
        except OSError as error:
            raise ValueError("not supported") from error


@pytest.mark.parametrize(
    ("full", "reason"),
    [
        (FullDisk(), "OSError: [Errno 28] No space left on device"),
        (Wrapping(), "ValueError: not supported (because of OSError(28, 'No space left on device'))"),
    ],
    ids=["directly", "with a cause"],
)
def test_logger_that_fails_gives_one_warning_per_fit_and_training_goes_on(full, reason):
    monitor = AttentionMonitor(every_n_steps=1)
    for _ in range(2):
        other = Kept()
        with pytest.warns(AttnwatchWarning) as caught:
            trainer, _ = train_epochs(monitor, logger=[full, other], limit_val_batches=0)
        assert messages(caught) == [
            f"attnwatch: writing scalars to {type(full).__name__} failed and is not tried again, training continues: "
            f"{reason}"
        ]
        assert trainer.global_step == 12
        assert other.steps("attention_details/entropy") == list(range(12))


def test_pictures_that_can_not_be_drawn_cost_no_scalars(tmp_path, monkeypatch):
    for module in ("figures", "heatmaps"):
        monkeypatch.delitem(sys.modules, f"attnwatch.dashboard.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if matplotlib were missing
    logger = TensorBoardLogger(tmp_path)
    monitor = AttentionMonitor(every_n_steps=1, figures_every_n_steps=1)
    with pytest.warns(AttnwatchWarning, match=r"writing pictures to .* pip install 'attnwatch\[tensorboard\]'"):
        train_epochs(monitor, logger=logger)
    assert len(events_of(logger).Scalars("attention_details/entropy")) == 12


def test_function_that_fails_stops_neither_training_nor_other_actions():
    def broken(finding, trainer, module):
        raise RuntimeError("in my function")

    metrics = Metrics()
    monitor = AttentionMonitor(
        every_n_steps=1,
        flush_every=1,
        **UNIFORM_WHEN_POISONED,
        on_finding={"non_finite": broken, "uniform_attention": "stop"},
    )
    with pytest.warns(AttnwatchWarning) as caught:
        trainer, _ = train_epochs(monitor, Llama(poison), callbacks=[metrics])
    assert messages(caught)[0] == "attnwatch: the monitor failed, training continues: RuntimeError: in my function"
    assert messages(caught)[1].startswith("attnwatch: uniform_attention since step 0")
    assert 8 <= trainer.global_step < 12
    assert metrics.batches[-1]["attention/risk"] == 1


@pytest.mark.parametrize("max_steps", [-1, 8], ids=["at every step", "at the end, too"])
def test_error_in_the_monitor_is_told_once_per_fit_and_stops_nothing(tmp_path, monkeypatch, max_steps):
    monitor = AttentionMonitor(every_n_steps=1, flush_every=3)
    monkeypatch.setattr(verdicts, "diagnose", lambda *arguments, **options: 1 / 0)
    for _ in range(2):
        with pytest.warns(AttnwatchWarning) as caught:
            trainer, _ = train_epochs(monitor, max_steps=max_steps, logger=TensorBoardLogger(tmp_path))
        assert messages(caught) == [
            "attnwatch: the monitor failed, training continues: ZeroDivisionError: division by zero"
        ]
        assert trainer.global_step == (12 if max_steps < 0 else 8)


class Interrupted(Kept):
    def log_metrics(self, metrics, step=None):
        if "attention_details/entropy" in metrics:
            raise KeyboardInterrupt


def test_ctrl_c_is_never_swallowed():
    def interrupted(finding, trainer, module):
        raise KeyboardInterrupt

    for options in ({"logger": Interrupted()}, {}):
        monitor = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding=interrupted)
        module = Llama(poison)
        with pytest.raises(SystemExit):
            train_epochs(monitor, module, **options)
        assert len(module.losses) < 12


# While the risk is not known


class AllMetrics(pl.Callback):
    def __init__(self):
        self.risks = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.risks.append(float(trainer.callback_metrics["attention/risk"]))


@pytest.mark.parametrize("options", [{}, {"check_finite": False}, {"strict": False}], ids=str)
def test_early_stopping_on_risk_goes_on_while_it_is_not_known(options):
    stopping = EarlyStopping("attention/risk", divergence_threshold=0.8, patience=10**6, **options)
    own = EarlyStopping("validation_loss", patience=10**6)
    metrics = AllMetrics()
    trainer, _ = train_epochs(AttentionMonitor(), epochs=3, callbacks=[stopping, own, metrics])
    assert trainer.current_epoch == 3
    assert np.isnan(metrics.risks).all()
    assert "_evaluate_stopping_criteria" not in vars(stopping)  # put back
    assert own.wait_count < 3


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_loses_no_patience_while_the_risk_is_not_known(mode):
    stopping = EarlyStopping("attention/risk", patience=1, mode=mode)
    trainer, _ = train_epochs(AttentionMonitor(), epochs=3, callbacks=[stopping])
    assert trainer.current_epoch == 3
    assert stopping.wait_count == 0


def test_early_stopping_is_put_back_after_an_error():
    def fail(module, batch_idx):
        raise ValueError("mine")

    stopping = EarlyStopping("attention/risk")
    with pytest.raises(ValueError, match="mine"):
        train_epochs(AttentionMonitor(), Llama(fail), callbacks=[stopping])
    assert "_evaluate_stopping_criteria" not in vars(stopping)


def test_checkpoints_are_kept_by_the_least_risk_once_it_is_known(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="attention/risk", mode="min", save_top_k=1)
    thresholds = Thresholds(min_steps=20)
    monitor, metrics = AttentionMonitor(every_n_steps=1, thresholds=thresholds, on_finding="ignore"), AllMetrics()
    train_epochs(monitor, epochs=3, callbacks=[checkpoint, metrics], enable_checkpointing=True)
    assert np.isnan(metrics.risks).tolist() == [True, False, False]
    assert checkpoint.best_model_score == pytest.approx(min(metrics.risks[1:]))


def flat_first_layer(module, batch_idx):
    nn.init.zeros_(module.model.model.layers[0].self_attn.q_proj.weight)


@pytest.mark.slow
def test_note_neither_warns_nor_stops_and_looks_different(tmp_path):
    logger, thresholds = TensorBoardLogger(tmp_path), Thresholds(min_steps=15, widespread=0.9)
    rules = [UniformAttention(steps=10)]
    told, asked = [], []
    for on_finding in (
        "stop",
        lambda finding, *_: told.append(finding.kind.value),
        {"uniform_attention": lambda finding, *_: asked.append((finding.kind.value, finding.is_note))},
    ):
        monitor = AttentionMonitor(every_n_steps=1, thresholds=thresholds, rules=rules, on_finding=on_finding)
        with warnings.catch_warnings():
            warnings.simplefilter("error", AttnwatchWarning)
            trainer, _ = train_epochs(monitor, Llama(flat_first_layer), steps=25, logger=logger)
        (note,) = monitor.diagnosis.findings
        assert (note.is_note, note.sites) == (True, ("model.model.layers.0.self_attn",))
        assert trainer.global_step == 25
    assert told == []
    assert asked == [("uniform_attention", True)]
    text = events_of(logger).Tensors("attention/diagnosis/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "*Note (uniform attention), since step" in text
    assert ", severity" not in text
