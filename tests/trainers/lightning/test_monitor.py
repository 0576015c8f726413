"""The monitor in real Lightning trainings of a tiny Llama."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from attnwatch import AttnwatchWarning, ConfigurationError, NoAttentionError, RunStatus
from attnwatch.lightning import AttentionMonitor
from attnwatch.recorder import AttentionRecorder
from tests.support.equality import assert_same_history
from tests.support.lightning_training import Llama, batches, train_epochs
from tests.support.models import VOCABULARY, WIDTH, gpt, llama, seeded, token_ids

# Lightning gives hints on workers and intervals; what attnwatch itself warns of stays an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


def test_defaults_are_enough(tmp_path):
    monitor = AttentionMonitor()
    train_epochs(monitor, steps=25, tmp_path=tmp_path, logger=True)
    assert monitor.history.steps.tolist() == [0, 10, 20]
    assert monitor.history.sites == tuple(f"model.model.layers.{layer}.self_attn" for layer in range(2))
    assert np.isfinite(monitor.history["normalized_entropy"]).all()
    assert set(monitor.coverage().values()) == {"observed"}
    assert monitor.diagnosis.status is RunStatus.UNDETERMINED


def test_metrics_can_be_monitored(tmp_path):
    stopping = EarlyStopping("attention/normalized_entropy", patience=0, min_delta=10.0)
    checkpoint = ModelCheckpoint(tmp_path, monitor="attention/max_logit", filename="{attention/risk:.1f}")
    trainer, _ = train_epochs(
        AttentionMonitor(), epochs=3, callbacks=[stopping, checkpoint], enable_checkpointing=True, tmp_path=tmp_path
    )
    assert trainer.current_epoch == 2
    assert stopping.stopped_epoch == 1
    assert {f"attention/{name}" for name in ("normalized_entropy", "risk")} <= set(trainer.callback_metrics)
    assert float(checkpoint.best_model_score) == pytest.approx(
        float(trainer.callback_metrics["attention/max_logit"]), rel=1
    )


class Varying(Llama):
    """Batches of other lengths, a learning rate that falls, and a frozen layer in evaluation mode."""

    def on_train_start(self):
        self.model.model.layers[0].requires_grad_(False).eval()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:, : (12, 5, 2, 9)[batch_idx % 4]], batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_varied_training_is_bit_identical(precision):
    options = {"precision": precision, "val_check_interval": 5, "accumulate_grad_batches": 2}
    _, plain = train_epochs(None, Varying(dropout=0.1), **options)
    state = torch.get_rng_state()
    monitor = AttentionMonitor(every_n_steps=1)
    _, watched = train_epochs(monitor, Varying(dropout=0.1), **options)
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    for (name, first), second in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(first, second), name
    assert np.isfinite(monitor.history["normalized_entropy"]).all()


def saved_after_three_steps(tmp_path):
    trainer, _ = train_epochs(AttentionMonitor(), steps=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    return tmp_path / "three.ckpt"


def test_metrics_are_there_from_the_first_epoch_of_a_resumed_run(tmp_path):
    # Step 10 is the next that is observed, after the end of the first resumed epoch.
    stopping = EarlyStopping("attention/risk", patience=99, check_on_train_epoch_end=True)
    path = saved_after_three_steps(tmp_path)
    trainer, _ = train_epochs(AttentionMonitor(), steps=3, epochs=2, callbacks=[stopping], ckpt_path=path)
    assert math.isnan(trainer.callback_metrics["attention/risk"])  # nothing can be said yet


def test_history_of_other_sites_is_not_continued(tmp_path):
    monitor, path = AttentionMonitor(sites=["*layers.1*"], every_n_steps=1), saved_after_three_steps(tmp_path)
    with pytest.warns(AttnwatchWarning, match="the history in the checkpoint can't be continued, a new one begins"):
        train_epochs(monitor, steps=3, epochs=2, ckpt_path=path)
    assert monitor.history.steps.tolist() == [3, 4, 5]


def test_checkpoint_is_for_one_fit(tmp_path):
    monitor, path = AttentionMonitor(every_n_steps=1), saved_after_three_steps(tmp_path)
    train_epochs(monitor, steps=3, epochs=2, ckpt_path=path)
    assert monitor.history.steps.tolist() == [0, 3, 4, 5]
    train_epochs(monitor, steps=3)
    assert monitor.history.steps.tolist() == [0, 1, 2]


class RestoringLate(SingleDeviceStrategy):
    """Restores a checkpoint when fitting has begun, as strategies that shard parameters do."""

    restore_checkpoint_after_setup = True


def test_history_goes_on_where_checkpoints_are_restored_late(tmp_path):
    monitor, path = AttentionMonitor(every_n_steps=1), saved_after_three_steps(tmp_path)
    train_epochs(monitor, steps=3, epochs=2, ckpt_path=path, strategy=RestoringLate("cpu"))
    assert monitor.history.steps.tolist() == [0, 3, 4, 5]


def test_nothing_to_save_before_fit():
    assert AttentionMonitor().state_dict() == {}


def test_checkpoint_loads_without_pickled_code(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    train_epochs(AttentionMonitor(every_n_steps=2), callbacks=[checkpoint], enable_checkpointing=True)
    callbacks = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = [state for name, state in callbacks.items() if "AttentionMonitor" in name]
    assert state["recorder"]["history"]["count"] == 6


def test_gradient_accumulation_counts_steps_and_keeps_the_loss():
    monitor = AttentionMonitor(every_n_steps=1, num_query_rows=None)
    _, module = train_epochs(monitor, accumulate_grad_batches=3)
    assert monitor.history.steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(monitor.history.loss, np.reshape(module.losses, (4, 3)).mean(1), rtol=1e-6)


class AccumulatingByHand(Llama):
    """An optimizer step takes two batches, also across the end of an epoch of three."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        if len(self.losses) % 2 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()
        return loss


def test_step_across_the_end_of_an_epoch_is_one_observation():
    monitor = AttentionMonitor(every_n_steps=1)
    _, module = train_epochs(monitor, AccumulatingByHand(), steps=3, epochs=2)
    assert monitor.history.steps.tolist() == [0, 1, 2]
    np.testing.assert_allclose(monitor.history.loss, np.reshape(module.losses, (3, 2)).mean(1), rtol=1e-6)


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
    train_epochs(monitor, TwoOptimizers())
    assert monitor.history.steps.tolist() == [0, 6, 10, 16, 20]
    assert np.isfinite(monitor.history["entropy"]).all()
    assert np.isnan(monitor.history.loss).all()  # training_step returns none


def test_validation_and_sanity_checking_are_not_watched():
    monitor = AttentionMonitor(every_n_steps=1, num_query_rows=None)
    train_epochs(monitor, num_sanity_val_steps=2, val_check_interval=2)
    without = AttentionMonitor(every_n_steps=1, num_query_rows=None)
    train_epochs(without, num_sanity_val_steps=0, limit_val_batches=0)
    assert_same_history(monitor.history, without.history)


class SkipsTheRest(Llama):
    """Leaves every epoch after four batches, then looks at what the model does."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 4 else None

    def on_train_epoch_end(self):
        self.model(input_ids=token_ids(1, 5))


def test_what_comes_after_an_epoch_that_is_left_early_is_not_watched():
    monitor = AttentionMonitor(every_n_steps=1, num_query_rows=None, checkup=False)  # it finds the same four batches
    train_epochs(monitor, SkipsTheRest(), epochs=2, limit_val_batches=0)
    assert monitor.history.steps.tolist() == list(range(8))
    assert np.ptp(monitor.history["max_entropy"]) == 0


def test_trainings_within_each_other_are_watched_apart():
    inner, outer, alone = (AttentionMonitor(every_n_steps=1, num_query_rows=None) for _ in range(3))

    def train_within(module, batch_idx):
        if batch_idx == 3:
            train_epochs(inner, steps=4)

    train_epochs(outer, Llama(train_within), steps=6)
    train_epochs(alone, steps=6)
    assert_same_history(outer.history, alone.history)
    assert inner.history.steps.tolist() == [0, 1, 2, 3]


def test_validation_by_another_trainer_does_not_end_the_watch():
    monitor = AttentionMonitor(every_n_steps=1)

    def validate(module, batch_idx):
        if batch_idx == 3:
            trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[monitor], enable_progress_bar=False)
            trainer.validate(Llama(), batches(2), verbose=False)

    train_epochs(monitor, Llama(validate), steps=6)
    assert np.isfinite(monitor.history["entropy"][4:]).all()


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({}, False),
        ({"seed": 1}, True),
        ({"num_query_rows": 3}, True),
        ({"sites": ["*layers.1*"]}, True),
        ({"max_history": 16}, True),
    ],
    ids=["same", "seed", "num_query_rows", "sites", "max_history"],
)
def test_options_are_those_of_the_recorder(options, differs):
    histories = []
    for changed in ({}, options):
        monitor = AttentionMonitor(**{"every_n_steps": 1, "num_query_rows": 2} | changed)
        train_epochs(monitor, steps=17, limit_val_batches=0)
        histories.append(monitor.history)
    first, second = (history["normalized_entropy"] for history in histories)
    assert (first.shape != second.shape or not np.array_equal(first, second)) == differs


class Compiled(Llama):
    def __init__(self):
        super().__init__()
        self.model = torch.compile(gpt(), backend="eager")

    def training_step(self, batch, batch_idx):
        return self.model(batch)

    def validation_step(self, batch, batch_idx):
        self.model(batch)


@pytest.mark.slow
def test_compiled_model_is_watched_from_before_its_first_forward():
    torch._dynamo.reset()
    monitor = AttentionMonitor(every_n_steps=2)
    train_epochs(monitor, Compiled(), steps=5, num_sanity_val_steps=1)
    assert monitor.coverage() == {f"model.layers.{layer}.attention": "observed" for layer in range(2)}
    assert np.isfinite(monitor.history["entropy"]).all()


class WithScriptedHead(Llama):
    """A Llama whose head is a TorchScript module."""

    def __init__(self):
        super().__init__()
        self.model.lm_head = torch.jit.script(seeded(lambda: nn.Linear(WIDTH, VOCABULARY)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_model_with_a_torchscript_module_is_watched_and_checked():
    monitor, losses = AttentionMonitor(every_n_steps=2), []
    for watching in (monitor, None):
        losses.append(train_epochs(watching, WithScriptedHead(), steps=8, limit_val_batches=0)[1].losses)
    assert losses[0] == losses[1]
    assert set(monitor.coverage().values()) == {"observed"}
    assert "future_leak" in monitor.checkup.answered


class Bigram(Llama):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Linear(4, VOCABULARY))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.model(batch).flatten(0, 1), batch.flatten())
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.logs_warnings
def test_model_without_attention_is_named_after_the_first_step_and_judged_by_its_loss(tmp_path):
    module, monitor = Bigram(), AttentionMonitor(every_n_steps=1, figures_every_n_steps=4)
    with pytest.warns(AttnwatchWarning) as warned:
        train_epochs(monitor, module, steps=12, tmp_path=tmp_path, logger=True)
    (message,) = [str(each.message) for each in warned if each.category is AttnwatchWarning]
    assert "`model` (Bigram) has no attention: no module calls" in message
    assert len(module.losses) == 12
    assert monitor.coverage() == {}
    assert monitor.history.sites == ()
    np.testing.assert_allclose(monitor.history.loss, module.losses, rtol=1e-6)


class Diverging(Bigram):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 if self.global_step < 6 else math.nan)


def test_loss_of_a_model_without_attention_is_judged():
    monitor = AttentionMonitor(every_n_steps=1, checkup=False, on_finding="ignore")
    with pytest.warns(AttnwatchWarning, match="The run is judged by its loss alone"):
        train_epochs(monitor, Diverging(), steps=12)
    assert monitor.diagnosis.status is RunStatus.UNSTABLE
    assert [finding.kind.value for finding in monitor.diagnosis.findings] == ["loss_non_finite"]


def test_model_of_torchs_own_modules_without_attention_is_an_error_before_the_first_step():
    module = Bigram()
    with pytest.raises(NoAttentionError, match="`model` \\(Sequential\\) has no attention"):
        AttentionRecorder(module.model)


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
            "`on_finding`: 'uniform' is not a kind of finding; there are: blind_attention, ",
        ),
        ({"thresholds": {"patience": 3}}, "`thresholds` must be Thresholds or None, got {'patience': 3}"),
        ({"on_finding": {"non_finite": "halt"}}, "`on_finding` for 'non_finite' must be one of 'warn', 'stop'"),
        ({"max_layer_curves": -1}, "`max_layer_curves` must be an integer of at least 0, got -1"),
        ({"figures_every_n_steps": 0}, "`figures_every_n_steps` must be an integer of at least 1 or None, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        AttentionMonitor(**arguments)


def test_history_before_fit_is_an_error_that_says_so():
    with pytest.raises(ConfigurationError, match="`history`: nothing has been observed yet"):
        _ = AttentionMonitor().history
    with pytest.raises(ConfigurationError, match="`coverage`: nothing has been observed yet"):
        AttentionMonitor().coverage()


def test_fast_dev_run_works():
    monitor = AttentionMonitor()
    train_epochs(monitor, fast_dev_run=True)
    assert monitor.history.steps.tolist() == [0]


def test_model_that_is_replaced_during_training_is_told():
    def replace(module, batch_idx):
        if batch_idx == 6:
            module.model = llama()

    monitor = AttentionMonitor(every_n_steps=2, checkup=False)
    with pytest.warns(AttnwatchWarning, match="nothing was observed in step 6: the model was replaced"):
        trainer, _ = train_epochs(monitor, Llama(replace))
    assert trainer.global_step == 12
    seen = np.isfinite(monitor.history["entropy"]).any((1, 2))
    assert dict(zip(monitor.history.steps.tolist(), seen.tolist(), strict=True)) == {
        **dict.fromkeys((0, 2, 4), True),
        **dict.fromkeys((6, 8, 10), False),
    }
