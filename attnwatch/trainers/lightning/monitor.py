"""The monitor as a Lightning callback."""

import contextlib

from attnwatch.callbacks.monitor import Monitor
from attnwatch.trainers.lightning.api import pl
from attnwatch.trainers.lightning.hooks import Hooks, documented_for_lightning
from attnwatch.trainers.lightning.stopping import risk_may_be_unknown


@documented_for_lightning("AttentionMonitor()")
class AttentionMonitor(Monitor, Hooks):
    _while_attached: contextlib.ExitStack | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._while_attached = contextlib.ExitStack()
        self._while_attached.enter_context(risk_may_be_unknown(trainer.callbacks))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch.close()  # still open where the module's on_train_batch_start has skipped the rest of the epoch

    def _detach(self) -> None:
        super()._detach()
        if self._while_attached is not None:
            self._while_attached.close()
