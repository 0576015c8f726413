"""The monitor as a Lightning callback."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from attnwatch.callbacks.monitor import Monitor
from attnwatch.lightning.run import LightningRun


class AttentionMonitor(Monitor, pl.Callback):
    # Its documentation is that of `Monitor`. The hooks come in this order.

    _restored: Mapping[str, Any] | None = None
    _run: LightningRun

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run = LightningRun(trainer, pl_module)
        self._start(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Strategies that shard parameters restore checkpoints after on_fit_start.
        restored, self._restored = self._restored, None
        if restored:
            self._restore(restored)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._begin_batch(self._run)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        self._end_batch(self._run, self._run.loss_of(outputs), is_last=trainer.is_last_batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch.close()  # still open where the module's on_train_batch_start has skipped the rest of the epoch

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(self._run)

    def state_dict(self) -> dict[str, Any]:
        return self._state()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._detach()
