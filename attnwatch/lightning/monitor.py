"""The monitor as a Lightning callback."""

from attnwatch.callbacks.monitor import Monitor
from attnwatch.lightning.api import pl
from attnwatch.lightning.hooks import Hooks


class AttentionMonitor(Monitor, Hooks):
    # Its documentation is that of `Monitor`.

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch.close()  # still open where the module's on_train_batch_start has skipped the rest of the epoch
