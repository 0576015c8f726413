"""A trainer from outside of the package: watched, pruned, with dropped tokens, judged, logged, saved and resumed."""

import re
import sys

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import attnwatch
import attnwatch.lightning
from attnwatch import ConfigurationError, FindingKind, PruningPlan, RunStatus, callbacks
from attnwatch.loggers import logger_for
from attnwatch.trainers.callback import callback_class
from tests.support.lightning_training import Llama, batches
from tests.support.models import LAYERS, llama, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


class TinyRun(attnwatch.TrainerRun):
    global_step = property(lambda run: run.trainer.step)
    total_steps = property(lambda run: run.trainer.max_steps)
    loggers = property(lambda run: [logger_for(writer) for writer in run.trainer.writers])

    def models_with_optimizers(self):
        return [(self.model, [self.trainer.optimizer])]

    def log(self, numbers, step, *, to_loggers=False):
        self.trainer.metrics |= numbers

    def stop(self):
        self.trainer.should_stop = True


class TinyCallback(attnwatch.PartCallback):
    def on_start(self, trainer, state):
        self.start(TinyRun(trainer, trainer.model))
        self.part.resume(self.run, state)

    def on_batch(self):
        self.part.begin_batch(self.run)

    def on_gradients(self):
        self.part.before_optimizer_step(None)

    def on_step(self, loss):
        self.part.end_batch(self.run, loss, is_last=False)

    def on_end(self):
        self.part.end(self.run)
        self.part.detach()


class TinyAdapter(attnwatch.TrainerAdapter):
    name, title, callback_base, first_hooks = "tiny", "the TinyTrainer", TinyCallback, ("on_start",)


AttentionMonitor = callback_class(TinyAdapter, callbacks.AttentionMonitor)
HeadPruning = callback_class(TinyAdapter, callbacks.HeadPruning)
TokenDropping = callback_class(TinyAdapter, callbacks.TokenDropping)


class TinyTrainer:
    """A loop with callbacks of its own kind, and checkpoints."""

    def __init__(self, callbacks, folder, *, model=None, max_steps=16, draws=False):
        self.model, self.callbacks, self.max_steps = model or llama(), callbacks, max_steps
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.folder, self.writers = folder, [SummaryWriter(folder)] if draws else []
        self.metrics, self.losses = {}, []
        self.step, self.should_stop = 0, False

    def fit(self, checkpoint=None, *, save_at=None):
        """Train; returns the checkpoint of the step `save_at`."""
        states, saved = {}, None
        if checkpoint is not None:
            attnwatch.accept_pruned_state(self.model)
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.step, states = checkpoint["step"], checkpoint["callbacks"]
        for callback in self.callbacks:
            callback.on_start(self, states.get(callback.state_key))
        while self.step < self.max_steps and not self.should_stop:
            ids = token_ids(batch=2, seed=self.step)
            self.call("on_batch")
            loss = self.model(input_ids=ids, labels=ids).loss
            loss.backward()
            self.call("on_gradients")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.losses.append(loss.item())
            self.call("on_step", loss.detach())
            if self.step == save_at:
                saved = self.checkpoint()
        self.call("on_end")
        for writer in self.writers:
            writer.close()
        return saved

    def call(self, hook, *arguments):
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)

    def checkpoint(self):
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        parts["callbacks"] = {callback.state_key: callback.state_dict() for callback in self.callbacks}
        path = self.folder / "checkpoint.pt"
        torch.save(parts, path)
        return torch.load(path, weights_only=True)


def all_three():
    dropping = TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=LAYERS - 1)
    return [AttentionMonitor(every_n_steps=2), HeadPruning(0.5, start=4, end=8, num_cuts=2, guard=None), dropping]


@pytest.mark.slow
def test_all_work_in_it_to_the_end(tmp_path, capsys):
    monitor, pruning, dropping = all_three()
    trainer = TinyTrainer([monitor, pruning, dropping], tmp_path, draws=True)
    trainer.fit()
    assert monitor.history.steps.tolist() == list(range(0, 16, 2))
    assert monitor.history.total_steps == 16
    assert monitor.diagnosis.status is RunStatus.UNDETERMINED
    assert set(monitor.coverage().values()) == {"observed"}
    assert [cut.step for cut in pruning.cuts] == [4, 8]
    assert PruningPlan.of(trainer.model).num_removed == 4
    assert 0.5 < dropping.dropper.layer_tokens / dropping.dropper.all_layer_tokens < 0.7
    assert {"attention/risk", "attention_details/entropy", "pruning/heads", "tokens/keep_ratio"} <= set(trainer.metrics)
    assert trainer.metrics["pruning/heads"] == 0.5
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "layers_max_logit/layer_1" in tags["scalars"]
    assert "attention_heads/max_logit" in tags["images"]
    assert {"attention/diagnosis/text_summary", "pruning/cuts/text_summary"} <= set(tags["tensors"])
    assert "attnwatch: 4 of 8 heads removed" in capsys.readouterr().out
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.model.modules())


@pytest.mark.parametrize("save_at", [3, 6, 12], ids=["before", "between", "after"])
def test_training_is_resumed_bit_for_bit(save_at, tmp_path):
    """Before, between and after the cuts."""
    whole = all_three()
    uninterrupted = TinyTrainer(whole, tmp_path)
    saved = uninterrupted.fit(save_at=save_at)
    rest = all_three()
    resumed = TinyTrainer(rest, tmp_path)
    resumed.fit(saved)
    assert resumed.losses == uninterrupted.losses[save_at:]
    torch.testing.assert_close(resumed.model.state_dict(), uninterrupted.model.state_dict(), rtol=0, atol=0)
    assert rest[0].history.steps.tolist() == whole[0].history.steps.tolist()
    assert [cut.step for cut in rest[1].cuts] == [4, 8]
    assert rest[2].dropper.layer_tokens == whole[2].dropper.layer_tokens


def test_findings_reach_its_users_and_stop_it(tmp_path):
    heard = []

    def hear(finding, trainer, model):
        heard.append((finding.kind, trainer, model))
        model.requires_grad_(True)

    model = llama()
    model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = torch.nan
    monitor = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding={"non_finite": hear}, checkup=False)
    trainer = TinyTrainer([monitor], tmp_path, model=model, max_steps=4)
    trainer.fit()
    assert heard == [(FindingKind.NON_FINITE, trainer, model)]
    assert monitor.diagnosis.status is RunStatus.UNSTABLE
    stopping = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding="stop", checkup=False)
    stopped = TinyTrainer([stopping], tmp_path, model=model, max_steps=4)
    with pytest.warns(attnwatch.AttnwatchWarning, match="non_finite since step 0"):
        stopped.fit()
    assert stopped.step == 1


def test_missing_method_is_an_error_that_names_it():
    class Half(TinyRun):
        models_with_optimizers = attnwatch.TrainerRun.models_with_optimizers

    with pytest.raises(TypeError, match=r"abstract class Half .*models_with_optimizers"):
        Half(None, None)


def test_callbacks_know_their_trainer(registered, tmp_path):
    registered(TinyAdapter)
    trainer = pl.Trainer(callbacks=[AttentionMonitor()], max_steps=1, logger=False, accelerator="cpu")
    with pytest.raises(
        ConfigurationError, match=rf"{__name__}.AttentionMonitor was given to Lightning's Trainer, which"
    ):
        trainer.fit(Llama(), batches(2))
    given = re.escape("attnwatch.lightning.HeadPruning was given to the TinyTrainer, which calls other hooks. For ")
    with pytest.raises(ConfigurationError, match=f"{given}this trainer: from {__name__} import HeadPruning"):
        TinyTrainer([attnwatch.lightning.HeadPruning(0.5)], tmp_path).fit()
    with pytest.raises(ConfigurationError, match="`callbacks` has two AttentionMonitor, but a trainer takes only one"):
        TinyTrainer([AttentionMonitor(), AttentionMonitor()], tmp_path).fit()


def test_callbacks_are_documented_for_their_trainer():
    assert AttentionMonitor.__module__ == __name__
    assert sys.modules[__name__].AttentionMonitor is callback_class(TinyAdapter, callbacks.AttentionMonitor)
    code = re.search(r"```python\n(.*?)```", HeadPruning.__doc__, re.S)[1]
    assert code == f"from {__name__} import HeadPruning\n\ncallback = HeadPruning(target=0.5)\n"
    given = {}
    exec(code, given)
    assert type(given["callback"]) is HeadPruning


def test_declaration_that_lacks_something_is_refused_by_name():
    class Lacking(attnwatch.TrainerAdapter):
        name, title = "lacking", "the LackingTrainer"

    with pytest.raises(ConfigurationError, match=r"the trainer 'lacking' \(.*\) must be a class with `callback_base`"):
        attnwatch.register(Lacking)
    with pytest.raises(ConfigurationError, match="has the name of the trainer 'lightning'"):
        attnwatch.register(type("Other", (TinyAdapter,), {"name": "lightning"}))
