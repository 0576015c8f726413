"""Base class of the work of callbacks, with its methods in the order in which trainers call them."""

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
    """Work of a callback, independent of the trainer that calls it.

    A trainer calls `start` and `resume`; for each batch `begin_batch`, `before_optimizer_step` when the gradients of a
    step are complete, and `end_batch`; then `end`, or `interrupt` after an error; and `detach` in any case.

    Attributes:
        example: code that creates the part, for the documentation.
        resizes_model: True if tensors in the training's checkpoints may have other shapes than in a newly built model.
        steers_training: True if training would differ without the part or its state.
        works_in_evaluation: True if the part changes the model outside of training, too.
        watched_metric: name of a logged metric that `record_metric` receives; None if there is none.
        choice_by_attention: (choice that is made by attention weights, argument to use instead); None if there is none.
    """

    example: ClassVar[str] = ""
    resizes_model: ClassVar[bool] = False
    steers_training: bool = False
    works_in_evaluation: bool = False
    watched_metric: str | None = None
    choice_by_attention: tuple[str, str] | None = None

    @property
    def workload(self) -> float:
        """Share of the heads, or tokens, that a step computes now. Times are compared only at equal shares."""
        return 1.0

    @property
    def distinguished_by(self) -> dict[str, Any]:
        """Arguments in which parts of one kind must differ to share a trainer; empty if a trainer takes only one."""
        return {}

    @property
    def description(self) -> str:
        """State of the training so far, as text; empty if there is nothing to say."""
        return ""

    @property
    def events(self) -> list[RunEvent]:
        """Changes so far of what the model computes, each with the number of optimizer steps completed before it."""
        return []

    @property
    def remarks(self) -> list[str]:
        """Markdown sentences on how to read the logged values of the model."""
        return []

    def check(self, run: TrainerRun) -> None:
        """Check that the part can work in this training, before the trainer prepares the model.

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
        """Continue from the state of a checkpoint; None begins anew. The first batch comes next."""

    def begin_batch(self, run: TrainerRun) -> None:
        """Begin a batch, or a micro-batch of a step. Forward and backward follow."""

    def skip_batch(self) -> None:
        """Close a batch that has begun and is not trained on."""

    def before_optimizer_step(self, optimizer: Optimizer | None) -> None:
        """Read the complete gradients of a step, before they are clipped if the trainer allows it.

        Args:
            optimizer: optimizer that steps next if there are several; None otherwise.
        """

    @abstractmethod
    def end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        """End a batch and, if a step is complete, the optimizer's step.

        Args:
            loss: mean over the batch; None if it is not known.
            is_last: True if metrics are read after this batch.
        """

    def record_metric(self, value: Tensor | float) -> None:
        """Record a new value of `watched_metric`."""

    def note_metrics(self, run: TrainerRun) -> None:
        """Read `run.metric_values`, which may have changed, since the trainer has logged or evaluated."""

    @abstractmethod
    def end(self, run: TrainerRun) -> None:
        """End the training."""

    def interrupt(self, run: TrainerRun) -> None:
        """Save what can be saved of a training that an exception or Ctrl-C ends. Other processes may not respond."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: tensors, numbers and strings. All processes call it."""

    def write_beside_checkpoint(self, folder: Path) -> None:
        """Write additional files about a checkpoint into its folder."""

    def attach_for_evaluation(self, model: nn.Module) -> None:
        """Change the model outside of training. Parts that do so set `works_in_evaluation`."""

    @abstractmethod
    def detach(self) -> None:
        """Remove what was attached to the model. May be called twice, and before `start`."""


def others_workload(part: TrainingPart, run: TrainerRun) -> float:
    """Return the share of the work that the other parts leave to a step."""
    return math.prod(other.workload for other in run.parts if other is not part)
