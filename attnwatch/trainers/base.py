"""Base classes for a trainer: its `TrainerRun`, and the declaration of its callbacks.

Each trainer has one file, or package, in this folder: a `TrainerRun`, a `PartCallback` that calls a part from the
trainer's hooks, and a registered `TrainerAdapter`. `tests/extending/test_trainer.py` shows one in 25 lines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from attnwatch.errors import ConfigurationError
from attnwatch.heads.pruner import ModelWithOptimizers
from attnwatch.loggers.base import Logger
from attnwatch.plugins import Plugin, Registry
from attnwatch.utils.messages import inform
from attnwatch.utils.processes import ValueT, broadcast, gathered, has_other_processes, is_first_process

if TYPE_CHECKING:
    from attnwatch.callbacks.part import TrainingPart
    from attnwatch.heads.plan import PruningPlan
    from attnwatch.runs import RunEvent
    from attnwatch.trainers.callback import PartCallback


class TrainerRun(ABC):
    """Current state of a training, and the requests that callbacks can make to its trainer.

    An adapter implements only this class. The defaults of methods that are not abstract suit a trainer without its own
    validation data, loggers or checkpoints, in one or several processes.

    Args:
        trainer: the trainer.
        model: the model that it trains.
    """

    def __init__(self, trainer: Any, model: nn.Module):
        self.trainer = trainer
        self.model = model

    @property
    @abstractmethod
    def global_step(self) -> int:
        """Number of complete optimizer steps."""

    @property
    def total_steps(self) -> int | None:
        """Value of `global_step` at the end of training; None if unknown."""
        return None

    @property
    def steps_per_epoch(self) -> int | None:
        """Number of optimizer steps in an epoch; None if unknown."""
        return None

    @property
    def is_dry_run(self) -> bool:
        """True if the training is a short test of the code, such as Lightning's `fast_dev_run`."""
        return False

    @abstractmethod
    def stop(self) -> None:
        """End the training after this step."""

    @abstractmethod
    def models_with_optimizers(self) -> list[ModelWithOptimizers]:
        """Return the model and then its copies, such as a moving average, each with the optimizers that train it."""

    @property
    def sharding(self) -> str | None:
        """Name of the strategy that shards or copies parameters, so that heads can't be removed; None otherwise."""
        return None

    def before_parameters_change(self) -> None:
        """Prepare for the replacement of parameters by smaller or larger ones."""

    def after_parameters_changed(self) -> None:
        """Update whatever holds parameters of the model, such as DistributedDataParallel, after they were replaced."""
        if has_other_processes():
            raise NotImplementedError(
                f"{type(self).__name__}.after_parameters_changed must rebuild what reduces gradients over processes."
            )

    def after_pruning(self, plan: PruningPlan) -> None:
        """Tell the user, after a training that has removed heads, how to load the saved model."""

    @property
    def has_validation_data(self) -> bool:
        """True if there is a `validation_loader`."""
        return False

    def validation_loader(self) -> Iterable[Any]:
        """Return this process's validation batches, from the first data set if there are several."""
        raise NotImplementedError(f"{type(self).__name__} has no validation data.")

    def to_device(self, batch: Any) -> Any:
        """Return the batch with its tensors on the model's device."""
        device = next(self.model.parameters()).device
        return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the model; None if the trainer has none."""
        return None

    @property
    def is_main_process(self) -> bool:
        """True for the process that logs and talks to the user."""
        return is_first_process()

    def is_true_anywhere(self, decision: bool) -> bool:
        """Return whether `decision` is true in any process. All processes must call this."""
        return any(gathered(decision))

    def broadcast(self, value: ValueT) -> ValueT:
        """Return the main process's value. All processes must call this."""
        return broadcast(value)

    @property
    def callbacks(self) -> Sequence[object]:
        """All callbacks of the trainer; by default its attribute `callbacks`."""
        return self.trainer.callbacks

    @property
    def parts(self) -> list[TrainingPart]:
        """Parts of attnwatch's callbacks in this training."""
        from attnwatch.trainers.callback import parts_of

        return parts_of(self.callbacks)

    @property
    def remarks(self) -> list[str]:
        """Sentences in markdown from all parts that explain how to read the logs."""
        return [remark for part in self.parts for remark in part.remarks]

    @property
    def changes(self) -> list[tuple[int, str]]:
        """(complete steps, short text) of each of `events`."""
        return [(event.step, event.label) for event in self.events]

    @property
    def events(self) -> list[RunEvent]:
        """Changes that the parts made to what the model computes, in order."""
        return sorted((event for part in self.parts for event in part.events), key=lambda event: event.step)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first parameter group of the first optimizer; nan without an optimizer."""
        _, optimizers = self.models_with_optimizers()[0]
        return float(optimizers[0].param_groups[0]["lr"]) if optimizers else math.nan

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """Hyperparameters known to the trainer, by name."""
        return {}

    @property
    def loggers(self) -> Sequence[Logger]:
        """Loggers of the trainer, on the process that logs; see `attnwatch.loggers.logger_for`."""
        return []

    @property
    def metrics(self) -> Collection[str]:
        """Names of the metrics logged so far."""
        return ()

    @property
    def metric_values(self) -> Mapping[str, float]:
        """Latest value of each metric that is already on the host, without waiting for the device."""
        return {}

    @property
    def folder(self) -> Path | None:
        """Folder for files about the training, beside its logs; None if the trainer has none."""
        return None

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int, *, to_loggers: bool = False) -> None:
        """Pass metrics to the trainer, for other callbacks to monitor.

        Args:
            numbers: numbers by name; nan where unknown.
            step: `global_step` at which they were measured.
            to_loggers: also pass them to the trainer's loggers, with its next metrics.
        """

    def unknown_is_no_alarm(self, metric: str) -> AbstractContextManager[None]:
        """Return a context in which callbacks that stop training by `metric` ignore nan, as it is not known yet."""
        return nullcontext()

    def inform(self, message: str) -> None:
        """Show a message to the user once for all processes; see `attnwatch.utils.messages.inform`."""
        if self.is_main_process:
            inform(message)


class TrainerAdapter(Plugin):
    """Declaration of a trainer.

    The module of a declaration must not import the trainer's library, so that all trainers can be listed.

    Attributes:
        title: name of the trainer in a sentence, with an article if it needs one, such as "the transformers Trainer".
        callback_base: subclass of `PartCallback` that calls a part from the trainer's hooks, or its "module:name".
        module: module that users import its callbacks from; by default that of the declaration.
        first_hooks: names of hooks, one of which the trainer calls first. Callbacks of other trainers raise there.
        example: Python code that passes the callback `{call}`, of class `{name}` in `{module}`, to a trainer.
    """

    registry: ClassVar[Registry[type[TrainerAdapter]]] = Registry("trainer", "attnwatch.trainers")
    title: ClassVar[str]
    callback_base: ClassVar[type[PartCallback[Any, Any]] | str]
    module: ClassVar[str]
    first_hooks: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[str] = "from {module} import {name}\n\ncallback = {call}"

    def __init_subclass__(cls) -> None:
        cls.module = vars(cls).get("module", cls.__module__)

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` that names what the declaration lacks."""
        missing = [f"`{name}`" for name in ("title", "callback_base") if not hasattr(plugin, name)]
        if missing or not isinstance(plugin, type):
            what = f"with {' and '.join(missing)}" if missing else "and not an instance"
            raise ConfigurationError(f"{cls.registry.describe(plugin)} must be a class {what}; see TrainerAdapter.")
