"""Head pruning as a Lightning callback."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from attnwatch.callbacks import refuse_two
from attnwatch.callbacks.pruning import Pruning
from attnwatch.errors import ConfigurationError
from attnwatch.lightning.run import LightningRun
from attnwatch.pruning.pruner import Patient
from attnwatch.pruning.state import accept_pruned_state


class HeadPruning(Pruning, pl.Callback):
    # Its documentation is that of `Pruning`. The hooks come in this order.

    _restored: dict[str, Any] | None = None
    _loading: tuple[RemovableHandle, ...] = ()
    _run: LightningRun

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_two(trainer.callbacks, HeadPruning)
        if stage == "fit" and not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise ConfigurationError(
                f"HeadPruning does not work under {type(trainer.strategy).__name__}, which shards parameters or keeps "
                "copies of them. Prune a checkpoint with attnwatch.prune_heads, then train that."
            )
        self._loading = tuple(accept_pruned_state(model) for model in _models(trainer, pl_module))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run = LightningRun(trainer, pl_module)
        self._metric_is_new_after: str | None = None
        self._start(
            self._run,
            pl_module,
            patients=lambda: _patients(trainer, pl_module),
            callbacks=trainer.callbacks,
            agree=trainer.strategy.broadcast,
            after_change=lambda: _rebuild(trainer),
            is_trial=bool(trainer.fast_dev_run),
        )
        restored, self._restored = self._restored, None
        if restored:
            self._pruner.load_state_dict(restored)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.start(trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._clock.batch_starts()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        # Gradients are unscaled and not clipped yet.
        self._before_optimizer_step(optimizer if len(trainer.optimizers) > 1 else None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        self._after_batch(self._run, self._run.loss_of(outputs))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._record_logged(trainer, "epoch")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and self._pruner is not None:
            self._record_logged(trainer, "validation")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(self._run)

    def state_dict(self) -> dict[str, Any]:
        return self._state()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for handle in self._loading:
            handle.remove()
        self._close()

    def _record_step(self, loss: Tensor | None) -> None:
        super()._record_step(loss)
        self._record_logged(self._run.arguments[0], "step")

    def _record_logged(self, trainer: pl.Trainer, when: str) -> None:
        """Logged metrics keep their value until they are logged again; when one is seen first says when it is new."""
        if self._metric is None or self._metric not in trainer.callback_metrics:
            return
        self._metric_is_new_after = self._metric_is_new_after or when
        if self._metric_is_new_after == when:
            self._record_metric(trainer.callback_metrics[self._metric].detach().clone())


def _models(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
    """The module, and the averaged copy of it that Lightning's WeightAveraging or StochasticWeightAveraging keeps."""
    averages = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]
    averages = [average.module if isinstance(average, AveragedModel) else average for average in averages]
    return [pl_module, *(average for average in averages if average is not None)]


def _patients(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Patient]:
    module, *copies = _models(trainer, pl_module)
    return [(module, trainer.strategy.optimizers), *((model, ()) for model in copies)]


def _rebuild(trainer: pl.Trainer) -> None:
    """Data parallelism reduces the gradients of the parameters that it was made with."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.model = trainer.strategy.lightning_module
        trainer.strategy.configure_ddp()
