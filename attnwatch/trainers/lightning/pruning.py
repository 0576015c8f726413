"""Head pruning as a Lightning callback."""

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from attnwatch.callbacks.pruning import Pruning
from attnwatch.errors import ConfigurationError
from attnwatch.heads.plan import PruningPlan
from attnwatch.heads.state import accept_pruned_state
from attnwatch.trainers.lightning.api import is_one, pl
from attnwatch.trainers.lightning.hooks import Hooks, documented_for_lightning
from attnwatch.trainers.lightning.run import LightningRun


@documented_for_lightning("HeadPruning(target=0.5)")
class HeadPruning(Pruning, Hooks):
    _loading: tuple[RemovableHandle, ...] = ()
    _metric_is_new_after: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not is_one(trainer.strategy, "DDPStrategy", "SingleDeviceStrategy"):
            raise ConfigurationError(
                f"HeadPruning does not work under {type(trainer.strategy).__name__}, which shards parameters or keeps "
                "copies of them. Prune a checkpoint with attnwatch.prune_heads, then train that."
            )
        self._loading = tuple(accept_pruned_state(model) for model, _ in LightningRun(trainer, pl_module).patients())

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._metric_is_new_after = None
        super().on_fit_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._record_logged(trainer, "epoch")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and self._pruner is not None:
            self._record_logged(trainer, "validation")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        for handle in self._loading:
            handle.remove()

    def _end(self, run: LightningRun) -> None:
        super()._end(run)
        if PruningPlan.of(self._model).heads:
            run.tell(
                "heads were removed: a checkpoint of this module, with weights only too, is loaded by a module whose "
                "__init__ calls attnwatch.accept_pruned_state(self), or while HeadPruning is among the callbacks."
            )

    def _record_step(self, loss: Tensor | None) -> None:
        super()._record_step(loss)
        self._record_logged(self._run.trainer, "step")

    def _record_logged(self, trainer: pl.Trainer, when: str) -> None:
        """Logged metrics keep their value until they are logged again; when one is seen first says when it is new."""
        if self._metric is None or self._metric not in trainer.callback_metrics:
            return
        self._metric_is_new_after = self._metric_is_new_after or when
        if self._metric_is_new_after == when:
            self._record_metric(trainer.callback_metrics[self._metric].detach().clone())
