"""The monitor in real Lightning trainings of a tiny Llama."""

import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from models import VOCABULARY, WIDTH, llama, token_ids
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader
from transformers.modeling_utils import AttentionInterface

from attnwatch import AttnwatchWarning, ConfigurationError, NoAttentionError, RunStatus, Thresholds
from attnwatch.lightning import AttentionMonitor
from attnwatch.metrics import STATISTICS

# Lightning gives hints on workers and intervals; what attnwatch itself warns of stays an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

BATCH = 2


class Llama(pl.LightningModule):
    """`before_step(module, batch_idx)` is called in every training step."""

    def __init__(self, before_step=lambda module, batch_idx: None, dropout: float = 0.0):
        super().__init__()
        self.model = llama(dropout=dropout)
        self.before_step = before_step
        self.losses = []

    def training_step(self, batch, batch_idx):
        self.before_step(self, batch_idx)
        loss = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("validation_loss", self.model(input_ids=batch, labels=batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def batches(number: int) -> DataLoader:
    return DataLoader(token_ids(number * BATCH), batch_size=BATCH)


def train(
    monitor, module=None, *, steps=12, epochs=1, tmp_path=None, logger=False, callbacks=(), ckpt_path=None, **options
):
    """Train a tiny Llama for `steps` batches per epoch; returns (trainer, module)."""
    pl.seed_everything(0, verbose=False)
    module = module or Llama()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=logger,
        callbacks=[*([monitor] if monitor else []), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False} | options,
    )
    trainer.fit(module, batches(steps), batches(2), ckpt_path=ckpt_path)
    return trainer, module


def assert_same_history(first, second):
    np.testing.assert_array_equal(first.steps, second.steps)
    np.testing.assert_array_equal(first.loss, second.loss)
    for name in STATISTICS:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_defaults_are_enough(tmp_path):
    monitor = AttentionMonitor()
    train(monitor, steps=25, tmp_path=tmp_path, logger=True)
    assert monitor.history.steps.tolist() == [0, 10, 20]
    assert monitor.history.sites == tuple(f"model.model.layers.{layer}.self_attn" for layer in range(2))
    assert np.isfinite(monitor.history["normalized_entropy"]).all()
    assert set(monitor.coverage().values()) == {"observed"}
    assert monitor.diagnosis.status is RunStatus.UNDETERMINED


def test_tensorboard_gets_scalars_pictures_and_words(tmp_path):
    monitor = AttentionMonitor(every_n_steps=2, figures_every_n_steps=8)
    logger = TensorBoardLogger(tmp_path)
    train(monitor, steps=20, logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    layered = [name for name, statistic in STATISTICS.items() if statistic.per_layer]
    expected = {statistic.tag for statistic in STATISTICS.values()} | {"attention/risk"}
    expected |= {f"attention_{name}/layer_{layer}" for name in layered for layer in range(2)}
    assert expected <= set(tags["scalars"])
    curve = events.Scalars("attention_normalized_entropy/layer_1")
    assert [point.step for point in curve] == monitor.history.steps.tolist() == list(range(0, 20, 2))
    recorded = monitor.history["normalized_entropy"][:, 1].mean(-1)
    np.testing.assert_allclose([point.value for point in curve], recorded, rtol=1e-6)
    assert set(tags["images"]) == {f"attention_{kind}/{name}" for kind in ("heads", "layers") for name in layered}
    assert len(events.Images("attention_heads/normalized_entropy")) >= 2  # on the way, and at the end
    text = events.Tensors("attention/diagnosis/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "risk" in text


def test_every_logger_gets_the_scalars(tmp_path):
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    train(AttentionMonitor(every_n_steps=4), logger=loggers)
    rows = np.genfromtxt(tmp_path / "csv/lightning_logs/version_0/metrics.csv", delimiter=",", names=True)
    entropy = rows["attentionnormalized_entropy"]
    assert np.isfinite(entropy).sum() == 3
    events = EventAccumulator(loggers[1].log_dir).Reload()
    np.testing.assert_allclose(
        entropy[np.isfinite(entropy)],
        [point.value for point in events.Scalars("attention/normalized_entropy")],
        rtol=1e-5,
    )


def test_metrics_can_be_monitored(tmp_path):
    stopping = EarlyStopping("attention/normalized_entropy", patience=0, min_delta=10.0)
    checkpoint = ModelCheckpoint(tmp_path, monitor="attention/max_logit", filename="{attention/risk:.1f}")
    trainer, _ = train(
        AttentionMonitor(), epochs=3, callbacks=[stopping, checkpoint], enable_checkpointing=True, tmp_path=tmp_path
    )
    assert trainer.current_epoch == 2
    assert stopping.stopped_epoch == 1
    assert {f"attention/{name}" for name in ("normalized_entropy", "risk")} <= set(trainer.callback_metrics)
    assert float(checkpoint.best_model_score) == pytest.approx(
        float(trainer.callback_metrics["attention/max_logit"]), rel=1
    )


def test_early_stopping_on_risk_lets_a_healthy_run_go_on_and_stops_a_sick_one():
    def stopping():
        return EarlyStopping("attention/risk", divergence_threshold=0.8, patience=10**6, check_on_train_epoch_end=True)

    healthy, _ = train(AttentionMonitor(), epochs=6, callbacks=[stopping()])
    assert healthy.current_epoch == 6
    monitor = AttentionMonitor(every_n_steps=1, on_finding="ignore")
    sick, _ = train(monitor, Llama(poison), epochs=6, callbacks=[stopping()])
    assert sick.current_epoch == 1
    assert (
        np.isnan(float(sick.callback_metrics["attention/content_sensitivity"]))
        == np.isnan(monitor.history["content_sensitivity"][-1]).all()
    )


def test_training_is_bit_identical():
    _, plain = train(None, Llama(dropout=0.1))
    state = torch.get_rng_state()
    _, watched = train(AttentionMonitor(every_n_steps=1), Llama(dropout=0.1))
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    for (name, first), second in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    options = {"every_n_steps": 3, "flush_every": 2, "num_query_rows": 5}
    uninterrupted = AttentionMonitor(**options)
    train(uninterrupted, epochs=2)

    def kill(module, batch_idx):
        if module.current_epoch == 1 and batch_idx == 5:
            raise KeyboardInterrupt

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=12, save_top_k=-1, filename="{step}")
    with pytest.raises(SystemExit):
        train(AttentionMonitor(**options), Llama(kill), epochs=2, callbacks=[checkpoint], enable_checkpointing=True)
    resumed = AttentionMonitor(**options)
    train(resumed, epochs=2, ckpt_path=tmp_path / "step=12.ckpt")
    assert_same_history(resumed.history, uninterrupted.history)


def saved_after_three_steps(tmp_path):
    trainer, _ = train(AttentionMonitor(), steps=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    return tmp_path / "three.ckpt"


def test_metrics_are_there_from_the_first_epoch_of_a_resumed_run(tmp_path):
    # Step 10 is the next that is observed, after the end of the first resumed epoch.
    stopping = EarlyStopping("attention/risk", patience=99, check_on_train_epoch_end=True)
    path = saved_after_three_steps(tmp_path)
    trainer, _ = train(AttentionMonitor(), steps=3, epochs=2, callbacks=[stopping], ckpt_path=path)
    assert float(trainer.callback_metrics["attention/risk"]) == 0.0


def test_history_of_other_sites_is_not_continued(tmp_path):
    monitor, path = AttentionMonitor(sites=["*layers.1*"], every_n_steps=1), saved_after_three_steps(tmp_path)
    with pytest.warns(AttnwatchWarning, match="the checkpoint's history is not continued, a new one begins"):
        train(monitor, steps=3, epochs=2, ckpt_path=path)
    assert monitor.history.steps.tolist() == [3, 4, 5]


def test_checkpoint_loads_without_pickled_code(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    train(AttentionMonitor(every_n_steps=2), callbacks=[checkpoint], enable_checkpointing=True)
    callbacks = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = [state for name, state in callbacks.items() if "AttentionMonitor" in name]
    assert state["recorder"]["history"]["count"] == 6


def test_gradient_accumulation_counts_steps_and_keeps_the_loss():
    monitor = AttentionMonitor(every_n_steps=1, num_query_rows=None)
    _, module = train(monitor, accumulate_grad_batches=3)
    assert monitor.history.steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(monitor.history.loss, np.reshape(module.losses, (4, 3)).mean(1), rtol=1e-6)


class TwoOptimizers(Llama):
    """Manual optimization: Lightning counts every optimizer step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        attention = [p for name, p in self.named_parameters() if "self_attn" in name]
        others = [p for name, p in self.named_parameters() if "self_attn" not in name]
        return [torch.optim.AdamW(attention), torch.optim.SGD(others, lr=0.1)]


def test_manual_optimization_with_two_optimizers():
    monitor = AttentionMonitor(every_n_steps=5)
    train(monitor, TwoOptimizers())
    assert monitor.history.steps.tolist() == [0, 6, 10, 16, 20]
    assert np.isfinite(monitor.history["entropy"]).all()
    assert np.isnan(monitor.history.loss).all()  # training_step returns none


def test_validation_and_sanity_checking_are_not_watched():
    monitor = AttentionMonitor(every_n_steps=1, num_query_rows=None)
    train(monitor, num_sanity_val_steps=2, val_check_interval=2)
    without = AttentionMonitor(every_n_steps=1, num_query_rows=None)
    train(without, num_sanity_val_steps=0, limit_val_batches=0)
    assert_same_history(monitor.history, without.history)


def test_fit_twice_starts_anew():
    monitor, module = AttentionMonitor(every_n_steps=4), Llama()
    train(monitor, module)
    train(monitor, module, steps=6)
    assert monitor.history.steps.tolist() == [0, 4]


def poison(module, batch_idx):
    if batch_idx == 6:
        with torch.no_grad():
            module.model.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan


def test_stop_at_chosen_findings():
    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding={"non_finite": "stop"})
    with pytest.warns(AttnwatchWarning, match="non_finite since step 6: .* at 1 of 2 sites"):
        trainer, _ = train(monitor, Llama(poison), steps=30)
    assert trainer.global_step < 12
    assert monitor.diagnosis.status is RunStatus.UNSTABLE
    assert monitor.history["nonfinite"][-1].max() == 1


def test_a_function_is_told_of_findings_once():
    told = []
    monitor = AttentionMonitor(
        every_n_steps=1,
        flush_every=1,
        on_finding=lambda finding, trainer, module: told.append((finding.kind.value, type(module))),
    )
    trainer, _ = train(monitor, Llama(poison), steps=20)
    assert told == [("non_finite", Llama)]
    assert trainer.global_step == 20


def test_uniform_attention_is_flagged():
    def flatten(module, batch_idx):
        for layer in module.model.model.layers:
            nn.init.zeros_(layer.self_attn.q_proj.weight)

    thresholds = Thresholds(min_steps=15, uniform_steps=10)
    monitor = AttentionMonitor(every_n_steps=1, thresholds=thresholds)
    with pytest.warns(AttnwatchWarning, match="uniform_attention since step 0"):
        train(monitor, Llama(flatten), steps=25)
    assert monitor.diagnosis.status is RunStatus.NOT_CONVERGING


class HalfReadable(Llama):
    """The second layer computes attention by hand."""

    def __init__(self):
        super().__init__()
        self.model.model.layers[1].self_attn = HandwrittenAttention()


class HandwrittenAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states, **kwargs):
        states = self.projection(hidden_states)
        return (states @ states.mT).softmax(-1) @ states, None


def test_what_is_not_observed_is_named_once():
    with pytest.warns(AttnwatchWarning) as caught:
        train(AttentionMonitor(every_n_steps=1), HalfReadable())
    (message,) = [str(w.message) for w in caught if issubclass(w.category, AttnwatchWarning)]
    assert message.startswith(
        "attnwatch: 1 of 2 attention sites are not observed. model.model.layers.1.self_attn: computes attention without"
    )


def raise_at_four(error):
    def before_step(module, batch_idx):
        if batch_idx == 4:
            raise error

    return before_step


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
def test_everything_is_put_back_after_an_error_in_training(error):
    lookup, sdpa = AttentionInterface.get_interface, F.scaled_dot_product_attention
    module, monitor = Llama(raise_at_four(error)), AttentionMonitor(every_n_steps=1)
    with pytest.raises((ValueError, SystemExit)):
        train(monitor, module)
    assert AttentionInterface.get_interface is lookup
    assert F.scaled_dot_product_attention is sdpa
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert monitor.history.steps.tolist() == [0, 1, 2, 3]


class FullDisk(Logger):
    """A logger whose directory takes no more."""

    name, version = "full", 0

    def log_metrics(self, metrics, step=None):
        raise OSError(28, "No space left on device")

    def log_hyperparams(self, params):
        pass


def test_logger_that_fails_gives_one_warning_and_training_goes_on(tmp_path):
    other = TensorBoardLogger(tmp_path)
    monitor = AttentionMonitor(every_n_steps=1)
    with pytest.warns(AttnwatchWarning) as caught:
        trainer, _ = train(monitor, logger=[FullDisk(), other], limit_val_batches=0)
    assert [str(w.message) for w in caught if issubclass(w.category, AttnwatchWarning)] == [
        "attnwatch gives FullDisk no more scalars, training goes on: OSError: [Errno 28] No space left on device"
    ]
    assert trainer.global_step == 12
    assert len(EventAccumulator(other.log_dir).Reload().Scalars("attention/entropy")) == 12


def test_pictures_that_can_not_be_drawn_cost_no_scalars(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "attnwatch.dashboard.figures", None)  # as if matplotlib were missing
    logger = TensorBoardLogger(tmp_path)
    monitor = AttentionMonitor(every_n_steps=1, figures_every_n_steps=1)
    with pytest.warns(AttnwatchWarning, match=r"no more pictures, .* pip install 'attnwatch\[tensorboard\]'"):
        train(monitor, logger=logger)
    assert len(EventAccumulator(logger.log_dir).Reload().Scalars("attention/entropy")) == 12


def test_error_in_the_monitor_does_not_stop_training():
    def broken(finding, trainer, module):
        raise RuntimeError("in my function")

    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding=broken)
    with pytest.warns(AttnwatchWarning, match="the monitor failed, training goes on: RuntimeError: in my function"):
        trainer, _ = train(monitor, Llama(poison))
    assert trainer.global_step == 12


class NoAttention(Llama):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(VOCABULARY, 1)


def test_model_without_attention_is_an_error_before_the_first_step():
    module = NoAttention()
    with pytest.raises(NoAttentionError, match="`model` \\(NoAttention\\) has no attention"):
        train(AttentionMonitor(), module)
    assert module.losses == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` must be an integer of at least 1, got 0"),
        ({"num_query_rows": 2.5}, "`num_query_rows` must be an integer of at least 1 or None, got 2.5"),
        ({"sites": "layers.*"}, "`sites` must be a list of glob patterns, got the string 'layers.\\*'"),
        ({"sites": [0]}, r"`sites` must be a list of glob patterns \(strings\), got \[0\]"),
        ({"on_finding": "shout"}, "`on_finding` must be one of 'warn', 'stop', 'ignore', a function"),
        (
            {"on_finding": {"uniform": "stop"}},
            "`on_finding`: 'uniform' is not a kind of finding; there are: uniform_att",
        ),
        ({"on_finding": {"non_finite": "halt"}}, "`on_finding` for 'non_finite' must be one of 'warn', 'stop'"),
        ({"max_layer_curves": -1}, "`max_layer_curves` must be an integer of at least 0, got -1"),
        ({"figures_every_n_steps": 0}, "`figures_every_n_steps` must be an integer of at least 1 or None, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        AttentionMonitor(**arguments)


def test_sites_that_do_not_exist_are_an_error_before_the_first_step():
    module = Llama()
    with pytest.raises(
        ConfigurationError, match=r"`sites`: 'encoder.\*' matches none of the model's sites: model.model"
    ):
        train(AttentionMonitor(sites=["encoder.*"]), module)
    assert module.losses == []


def test_history_before_fit_is_an_error_that_says_so():
    with pytest.raises(ConfigurationError, match="`history`: nothing was observed yet"):
        _ = AttentionMonitor().history


def test_fast_dev_run_works():
    monitor = AttentionMonitor()
    train(monitor, fast_dev_run=True)
    assert monitor.history.steps.tolist() == [0]
