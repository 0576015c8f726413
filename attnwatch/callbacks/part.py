"""Base class of what callbacks do in a training, in the order in which it is called."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from attnwatch.runs import RunEvent
    from attnwatch.trainers.base import TrainerRun


class TrainingPart(ABC):
    """Work of a callback, which does not know the trainer that calls it.

    A trainer calls `start` and `resume`; for each batch `begin_batch`, `before_optimizer_step` where the gradients of a
    step are complete, and `end_batch`; then `end`, or `interrupt` after an error; and `detach` in any case.

    Attributes:
        example: code that makes one, for the documentation.
        resizes_model: True if checkpoints of the training may have other shapes than the model that is built.
        steers_training: True if the training would be another one without the part or its state.
        works_in_evaluation: True if the part changes the model outside of training, too.
        watched_metric: name of a logged metric that `record_metric` takes; None if there is none.
        choice_by_attention: (what is chosen by attention weights, what to choose by instead); None if nothing is.
    """

    example: ClassVar[str] = ""
    resizes_model: ClassVar[bool] = False
    steers_training: bool = False
    works_in_evaluation: bool = False
    watched_metric: str | None = None
    choice_by_attention: tuple[str, str] | None = None

    @property
    def workload(self) -> float:
        """Share of the heads, or tokens, that a step computes now. Times are compared at equal shares only."""
        return 1.0

    @property
    def distinguished_by(self) -> dict[str, Any]:
        """Arguments in which several of a kind must differ to be in one trainer; empty if it takes one only."""
        return {}

    @property
    def description(self) -> str:
        """State of the training so far, as text; empty if there is nothing to say."""
        return ""

    @property
    def events(self) -> list[RunEvent]:
        """Changes of what the model computes so far, each with the number of complete steps when it came."""
        return []

    @property
    def remarks(self) -> list[str]:
        """Sentences in markdown on how to read what is logged of the model."""
        return []

    def check(self, run: TrainerRun) -> None:
        """Check, before the trainer prepares the model, that the part can work in this training.

        Raises:
            ConfigurationError: it can't; the message says what to do instead.
        """

    @abstractmethod
    def start(self, run: TrainerRun) -> None:
        """Begin a training. The global step is not known yet.

        Raises:
            ConfigurationError: an argument does not fit the model or the training.
        """

    @abstractmethod
    def resume(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        """Go on with the state of a checkpoint, or begin anew with None. The first batch comes next."""

    def begin_batch(self, run: TrainerRun) -> None:
        """Begin a batch, or a micro-batch of a step: forward and backward follow."""

    def skip_batch(self) -> None:
        """Close a batch that has begun and is not trained on."""

    def before_optimizer_step(self, optimizer: Optimizer | None) -> None:
        """Look at the complete gradients of a step, which are not clipped yet if the trainer allows it.

        Args:
            optimizer: the one that steps, if there are several.
        """

    @abstractmethod
    def end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        """End a batch and, if a step is complete, the optimizer's step.

        Args:
            loss: mean over the batch; None if it is not known.
            is_last: metrics will be looked at now.
        """

    def record_metric(self, value: Tensor | float) -> None:
        """Take a new value of `watched_metric`."""

    def note_metrics(self, run: TrainerRun) -> None:
        """Look at `run.metric_values`, which may have changed: the trainer has logged or evaluated."""

    @abstractmethod
    def end(self, run: TrainerRun) -> None:
        """End the training."""

    def interrupt(self, run: TrainerRun) -> None:
        """Keep what can be kept of a training that an exception ends, be it Ctrl-C. Other processes may not answer."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: tensors, numbers and strings. All processes call it."""

    def write_beside_checkpoint(self, folder: Path) -> None:
        """Write files into the folder of a checkpoint that others read of it."""

    def attach_for_evaluation(self, model: nn.Module) -> None:
        """Change the model outside of training; parts that do so set `works_in_evaluation`."""

    @abstractmethod
    def detach(self) -> None:
        """Leave the model as it was. May be called twice, and before `start`."""


def others_workload(part: TrainingPart, run: TrainerRun) -> float:
    """Return the share of the work that the other parts leave to a step."""
    return math.prod(other.workload for other in run.parts if other is not part)
