"""The monitor as a Lightning callback."""

from attnwatch.callbacks.monitor import Monitor
from attnwatch.lightning.api import pl
from attnwatch.lightning.hooks import Hooks, documented_for_lightning


@documented_for_lightning("AttentionMonitor()")
class AttentionMonitor(Monitor, Hooks):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch.close()  # still open where the module's on_train_batch_start has skipped the rest of the epoch
