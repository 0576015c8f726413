"""State of a Lightning training, for the callbacks."""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from attnwatch.heads.plan import PruningPlan
from attnwatch.loggers import Logger, logger_for
from attnwatch.loggers.scalars import ScalarLogger
from attnwatch.trainers.base import ModelWithOptimizers, TrainerRun
from attnwatch.trainers.lightning.api import (
    averaged_models,
    has_validation_loader,
    is_one,
    is_overridden,
    nan_is_no_alarm,
    pl,
)
from attnwatch.utils.messages import inform

_logger = logging.getLogger(f"{pl.__name__}.utilities.rank_zero")  # Lightning's messages to users


_SETTINGS = (
    "max_steps",
    "max_epochs",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "num_devices",
)


class LightningRun(TrainerRun):
    """One `fit` of a Lightning trainer.

    Attributes:
        has_ended: True once training has ended, after which Lightning accepts no metrics.
    """

    has_ended = False

    @property
    def global_step(self) -> int:
        return self.trainer.global_step

    @cached_property
    def total_steps(self) -> int | None:
        trainer, total = self.trainer, self.trainer.estimated_stepping_batches
        if total == math.inf or total <= 0:
            return None
        if self.trainer.lightning_module.automatic_optimization or trainer.max_steps != -1:
            return int(total)
        return int(total) * len(trainer.optimizers)  # `total` counts batches; each optimizer makes a step

    @property
    def steps_per_epoch(self) -> int | None:
        batches = self.trainer.num_training_batches
        if not 0 < batches < math.inf or not self.trainer.lightning_module.automatic_optimization:
            return None
        return math.ceil(batches / self.trainer.accumulate_grad_batches)

    @property
    def is_dry_run(self) -> bool:
        return bool(self.trainer.fast_dev_run)

    def stop(self) -> None:
        self.trainer.should_stop = True

    def models_with_optimizers(self) -> list[ModelWithOptimizers]:
        averages = [(average, ()) for average in averaged_models(self.callbacks)]
        return [(self.model, self.trainer.strategy.optimizers), *averages]

    @property
    def sharding(self) -> str | None:
        strategy = self.trainer.strategy
        return None if is_one(strategy, "DDPStrategy", "SingleDeviceStrategy") else type(strategy).__name__

    def after_parameters_changed(self) -> None:
        strategy = self.trainer.strategy
        if is_one(strategy, "DDPStrategy"):  # it reduces the gradients of the parameters it was built with
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()

    def after_pruning(self, plan: PruningPlan) -> None:
        self.inform(
            "heads were removed. To load a checkpoint of this module, even one with weights only, call "
            "attnwatch.accept_pruned_state(self) in its __init__, or keep HeadPruning among the callbacks."
        )

    @property
    def has_validation_data(self) -> bool:
        has_step = is_overridden("validation_step", self.model)
        return has_step and self.trainer.limit_val_batches > 0 and has_validation_loader(self.trainer)

    def validation_loader(self) -> Iterable[Any]:
        return tree_leaves(self.trainer.val_dataloaders)[0]

    def to_device(self, batch: Any) -> Any:
        return self.trainer.strategy.batch_to_device(batch)

    @property
    def is_main_process(self) -> bool:
        return self.trainer.is_global_zero

    def is_true_anywhere(self, decision: bool) -> bool:
        return self.trainer.strategy.reduce_boolean_decision(decision, all=False)

    def broadcast(self, value: Any) -> Any:
        return self.trainer.strategy.broadcast(value)

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        settings = {name: getattr(self.trainer, name, None) for name in _SETTINGS}
        known = {name: value for name, value in settings.items() if value is not None}
        return known | dict(self.trainer.lightning_module.hparams)

    @property
    def loggers(self) -> Sequence[Logger]:
        if not self.is_main_process:
            return []
        found = [logger_for(each, partial(_write, each), otherwise=ScalarLogger) for each in self.trainer.loggers]
        return [logger for logger in found if logger is not None]

    @property
    def metrics(self) -> Collection[str]:
        return self.trainer.callback_metrics

    @property
    def metric_values(self) -> Mapping[str, float]:
        known = self.trainer.callback_metrics.items()
        return {name: float(value) for name, value in known if value.device.type == "cpu" and value.numel() == 1}

    @property
    def folder(self) -> Path | None:
        folders = [getattr(logger, "log_dir", None) or logger.save_dir for logger in self.trainer.loggers]
        return Path(next(filter(None, folders), self.trainer.default_root_dir))

    def log(self, numbers: Mapping[str, float], step: int, *, to_loggers: bool = False) -> None:
        # The other numbers have been written to the loggers at their own step.
        if not self.has_ended:
            self.trainer.lightning_module.log_dict(dict(numbers), on_step=True, on_epoch=False, logger=to_loggers)

    def unknown_is_no_alarm(self, metric: str) -> AbstractContextManager[None]:
        return nan_is_no_alarm(self.callbacks, metric)

    def inform(self, message: str) -> None:
        if self.is_main_process:
            inform(message, by=_logger)

    def loss_of(self, outputs: Any) -> Tensor | None:
        """Return the mean loss from the output of `training_step`; None if it returned none."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        # Lightning has divided it by the number of accumulated batches.
        return None if loss is None else torch.as_tensor(loss).detach() * self.trainer.accumulate_grad_batches


def _write(logger: Any, numbers: Mapping[str, float], step: int) -> None:
    logger.log_metrics(dict(numbers), step)
