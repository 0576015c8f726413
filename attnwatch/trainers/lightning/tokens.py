"""Token dropping as a Lightning callback."""

from attnwatch.callbacks.tokens import Dropping
from attnwatch.trainers.lightning.api import pl
from attnwatch.trainers.lightning.hooks import Hooks, documented_for_lightning


@documented_for_lightning("TokenDropping(keep_ratio=0.5)")
class TokenDropping(Dropping, Hooks):
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            self._attach_in_evaluation(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._detach()
