"""When Lightning calls what the callbacks of all trainers share."""

from collections.abc import Mapping
from typing import Any

from attnwatch.callbacks import TrainingPart
from attnwatch.callbacks.part import refuse_two
from attnwatch.lightning.api import DISTRIBUTION, pl
from attnwatch.lightning.run import LightningRun
from attnwatch.versions import warn_if_untested


class Hooks(TrainingPart, pl.Callback):
    """In the order in which they come."""

    _run: LightningRun
    _restored: Mapping[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        warn_if_untested(DISTRIBUTION)
        refuse_two(trainer.callbacks, self)
        if stage == "fit":  # another trainer may evaluate the module in the middle of it
            self._run = LightningRun(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(self._run, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Strategies that shard parameters restore checkpoints after on_fit_start.
        restored, self._restored = self._restored, None
        self._go_on(self._run, restored)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._begin_batch(self._run)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        # Gradients are unscaled and not clipped yet.
        self._before_optimizer_step(optimizer if len(trainer.optimizers) > 1 else None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        self._end_batch(self._run, self._run.loss_of(outputs), is_last=trainer.is_last_batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run.has_ended = True
        self._end(self._run)

    def state_dict(self) -> dict[str, Any]:
        return self._state()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._detach()
