"""A Lightning training as the callbacks see it."""

import importlib
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

from attnwatch.heads.pruner import ModelWithOptimizers
from attnwatch.loggers.logger import Sink
from attnwatch.trainers.lightning.api import is_one, pl
from attnwatch.trainers.lightning.loggers import sinks_of
from attnwatch.utils.messages import tell

_logger = logging.getLogger(f"{pl.__name__}.utilities.rank_zero")  # of Lightning's own news
is_overridden = importlib.import_module(f"{pl.__name__}.utilities.model_helpers").is_overridden


class LightningRun:
    """See `TrainerRun`."""

    tokenizer = None
    has_ended = False
    """Lightning takes no more metrics then, and nobody would monitor them."""

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule):
        self.arguments = (trainer, pl_module)
        self.trainer = trainer
        self._module = pl_module

    @property
    def global_step(self) -> int:
        return self.trainer.global_step

    @cached_property
    def total_steps(self) -> int | None:
        trainer, total = self.trainer, self.trainer.estimated_stepping_batches
        if total == math.inf or total <= 0:
            return None
        if self._module.automatic_optimization or trainer.max_steps != -1:
            return int(total)
        return int(total) * len(trainer.optimizers)  # Lightning counts batches then; a step is that of any optimizer

    @property
    def is_trial(self) -> bool:
        return bool(self.trainer.fast_dev_run)

    @property
    def is_main_process(self) -> bool:
        return self.trainer.is_global_zero

    @property
    def has_validation_data(self) -> bool:
        # Its data loaders are made after the callbacks have started.
        loop = self.trainer.fit_loop.epoch_loop.val_loop
        has_step = is_overridden("validation_step", self._module)
        return has_step and self.trainer.limit_val_batches > 0 and loop._data_source.is_defined()

    def validation_loader(self) -> Iterable[Any]:
        return tree_leaves(self.trainer.val_dataloaders)[0]

    def to_device(self, batch: Any) -> Any:
        return self.trainer.strategy.batch_to_device(batch)

    @property
    def callbacks(self) -> Sequence[object]:
        return self.trainer.callbacks

    @property
    def sinks(self) -> Sequence[Sink]:
        return sinks_of(self.trainer)

    def log(self, numbers: Mapping[str, float], step: int, *, to_sinks: bool = False) -> None:
        # What goes to loggers at its own step does not go there again.
        if not self.has_ended:
            self._module.log_dict(dict(numbers), on_step=True, on_epoch=False, logger=to_sinks)

    @property
    def metrics(self) -> Collection[str]:
        return self.trainer.callback_metrics

    def tell(self, message: str) -> None:
        if self.is_main_process:
            tell(message, by=_logger)

    def is_true_anywhere(self, decision: bool) -> bool:
        return self.trainer.strategy.reduce_boolean_decision(decision, all=False)

    def agree(self, value: Any) -> Any:
        return self.trainer.strategy.broadcast(value)

    def stop(self) -> None:
        self.trainer.should_stop = True

    def patients(self) -> list[ModelWithOptimizers]:
        """With the averaged model that Lightning's WeightAveraging or StochasticWeightAveraging keeps."""
        averages = [getattr(callback, "_average_model", None) for callback in self.callbacks]
        averages = [average.module if isinstance(average, AveragedModel) else average for average in averages]
        copies = [(average, ()) for average in averages if average is not None]
        return [(self._module, self.trainer.strategy.optimizers), *copies]

    def parameters_were_replaced(self) -> None:
        """Data parallelism reduces the gradients of the parameters that it was made with."""
        strategy = self.trainer.strategy
        if is_one(strategy, "DDPStrategy"):
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()

    def loss_of(self, outputs: Any) -> Tensor | None:
        """Of what `training_step` returned; None where it returned none."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        # Lightning has divided it by the number of accumulated batches.
        return None if loss is None else torch.as_tensor(loss).detach() * self.trainer.accumulate_grad_batches
