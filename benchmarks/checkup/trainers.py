"""The same scripts under Lightning and under the transformers Trainer, whose monitor does the checkup."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import transformers as hf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

import attnwatch.lightning
import attnwatch.transformers
from attnwatch import Check, Finding
from attnwatch.callbacks import AttentionMonitor
from benchmarks.checkup.architectures import hf_loss
from benchmarks.checkup.data import Batch
from benchmarks.checkup.scripts import Outcome, Script, Trained, built, is_whole

_BATCHES_PER_EPOCH = 1000
_WITHOUT_OUTPUT = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
_WITHOUT_OUTPUT |= {"enable_model_summary": False, "num_sanity_val_steps": 0}


class NotExpressible(Exception):
    """A trainer has no usual way to do what a script does."""


class Drawn(Dataset[Batch]):
    """Batches of a script in their order, whatever the index, as many as an epoch has.

    Args:
        script: its batches are drawn.
        seed: of the batches.
    """

    def __init__(self, script: Script, seed: int):
        self._batches = script.batches(seed)
        self._length = (script.steps_per_epoch or _BATCHES_PER_EPOCH) * script.accumulate

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        return next(self._batches)


def _alone(items: Sequence[Batch]) -> Batch:
    return items[0]


def _outcome(monitor: AttentionMonitor, losses: list[float], error: str) -> Outcome:
    findings: Sequence[Finding] = () if monitor.diagnosis is None else monitor.diagnosis.findings
    checks = dict(Check.registry.items())
    return Outcome([each for each in findings if each.kind.value in checks], {}, Trained(losses, [], error))


def _late(script: Script, model: nn.Module) -> nn.Module:
    for prepare in script.prepare_late:
        model = prepare(model) or model
    return model


class ScriptModule(pl.LightningModule):
    """A script as a LightningModule; several optimizers are stepped by hand.

    Args:
        script: what is trained.
        model: the model of the script.
        optimizers_of_script: made for it.

    Attributes:
        losses: of each batch.
    """

    def __init__(self, script: Script, model: nn.Module, optimizers_of_script: Sequence[Optimizer]):
        super().__init__()
        self.model, self.losses = model, list[float]()
        self._script, self._made = script, list(optimizers_of_script)
        self.automatic_optimization = len(self._made) == 1

    def configure_optimizers(self) -> list[Any]:
        if not self.automatic_optimization:
            return self._made
        (optimizer,) = self._made
        scheduler = LambdaLR(optimizer, self._script.schedule)
        return [{"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}]

    def on_train_start(self) -> None:
        self.model = _late(self._script, self.model)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step, part = divmod(batch_idx + self.current_epoch * self.trainer.num_training_batches, self._script.accumulate)
        if part == 0:
            mode = self._script.mode(step)
            if mode is not None:
                self.model.train(mode)
            self._script.before_step(self.model, self._made, step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._script.loss(self.model, batch)
        self.losses.append(loss.item())
        if not self.automatic_optimization:
            self.manual_backward(loss / self._script.accumulate)
            if (batch_idx + 1) % self._script.accumulate == 0:
                for optimizer in self.optimizers():
                    optimizer.step()
                    if self._script.clear != "never":
                        optimizer.zero_grad()
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._script.clear == "between":
            optimizer.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self._script.clear != "never":
            optimizer.zero_grad(set_to_none=self._script.clear != "after_to_zero")

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        step, part = divmod(batch_idx + self.current_epoch * self.trainer.num_training_batches, self._script.accumulate)
        if part == self._script.accumulate - 1:
            self._script.after_step(self.model, self._made, step)


def under_lightning(script: Script, *, seed: int = 0) -> Outcome:
    """Train a script by Lightning with a checkup.

    Raises:
        NotExpressible: the script watches a part of the model.
    """
    if not is_whole(script):
        raise NotExpressible("the monitor watches the whole module")
    model, optimizers = built(script, seed)
    if len(optimizers) > 1 and script.clip is not None:
        raise NotExpressible("gradients of several optimizers are not clipped by the trainer")
    module = ScriptModule(script, model, optimizers)
    monitor = attnwatch.lightning.AttentionMonitor(on_finding="ignore", figures_every_n_steps=None)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=script.steps * len(optimizers),  # Lightning counts the steps of all optimizers
        callbacks=[monitor],
        gradient_clip_val=script.clip,
        accumulate_grad_batches=script.accumulate if len(optimizers) == 1 else 1,
        precision="bf16-mixed" if script.autocast is torch.bfloat16 else None,
        **_WITHOUT_OUTPUT,
    )
    error = _error_of(lambda: trainer.fit(module, DataLoader(Drawn(script, seed), batch_size=1, collate_fn=_alone)))
    return _outcome(monitor, module.losses, error)


class ScriptTrainer(hf.Trainer):
    """Trainer of transformers with the loss of a script.

    Args:
        script: what is trained.
        made: optimizers of the script.
        options: those of the trainer.

    Attributes:
        losses: of each batch.
    """

    def __init__(self, script: Script, made: Sequence[Optimizer], **options: Any):
        super().__init__(optimizers=(made[0], LambdaLR(made[0], script.schedule)), **options)
        self.losses: list[float] = []
        self._script, self._made = script, made
        if script.loss is not hf_loss:
            self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: Batch, *args: Any, **options: Any) -> Any:
        step, part = divmod(len(self.losses), self._script.accumulate)
        if part == 0:  # after the trainer has put the model into training mode
            if self._script.mode(step) is False:
                model.eval()
            self._script.before_step(model, self._made, step)
        if self._script.loss is hf_loss:
            loss = super().compute_loss(model, inputs, *args, **options)
        else:
            loss = self._script.loss(model, inputs)
        self.losses.append(loss.item())
        return loss


class _AfterStep(hf.TrainerCallback):
    def __init__(self, script: Script, made: Sequence[Optimizer]):
        self._script, self._made = script, made

    def on_step_end(self, args: object, state: hf.TrainerState, control: object, **options: Any) -> None:
        self._script.after_step(options["model"], self._made, state.global_step - 1)


def under_transformers(script: Script, *, seed: int = 0) -> Outcome:
    """Train a script by the Trainer of transformers with a checkup.

    Raises:
        NotExpressible: the script watches a part of the model, has several optimizers, or clears gradients in a way
            that the Trainer does not.
    """
    if not is_whole(script):
        raise NotExpressible("the monitor watches the whole model")
    if script.clear not in ("before", "after"):
        raise NotExpressible("the Trainer clears the gradients itself")
    model, made = built(script, seed)
    if len(made) > 1:
        raise NotExpressible("the Trainer has one optimizer")
    monitor = attnwatch.transformers.AttentionMonitor(on_finding="ignore", figures_every_n_steps=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ScriptTrainer(
            script,
            made,
            model=_late(script, model),
            args=_arguments(script, folder, seed),
            train_dataset=Drawn(script, seed),
            data_collator=_alone,
            callbacks=[monitor, _AfterStep(script, made)],
        )
        trainer.remove_callback(hf.PrinterCallback)
        error = _error_of(trainer.train)
    return _outcome(monitor, trainer.losses, error)


def _arguments(script: Script, folder: str, seed: int) -> hf.TrainingArguments:
    return hf.TrainingArguments(
        output_dir=folder,
        max_steps=script.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=script.accumulate,
        max_grad_norm=script.clip or 0.0,
        bf16=script.autocast is torch.bfloat16,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
    )


def _error_of(training: Callable[[], object]) -> str:
    """Return what a training raised, as a text: it is over, and what was found until then counts."""
    try:
        training()
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return ""


TRAINERS: dict[str, Callable[[Script], Outcome]] = {"Lightning": under_lightning, "Trainer": under_transformers}
