"""What a callback does in a training, in the order in which it comes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.callbacks.run import TrainerRun
from attnwatch.errors import ConfigurationError


class TrainingPart:
    """Called by the hooks of a trainer."""

    workload: float = 1.0
    """Share of the heads, or tokens, that a step computes now. Times of steps are compared at equal shares only."""
    steers_training = False
    """Whether the training would be another one without it, or without its state in a checkpoint."""

    @property
    def state_key(self) -> str:
        """What tells it from a trainer's other callbacks, in every run alike."""
        name = type(self).__qualname__
        return f"{name}{self.told_apart_by}" if self.told_apart_by else name

    @property
    def told_apart_by(self) -> dict[str, Any]:
        """Arguments in which several of a kind must differ to be in one trainer; empty where it takes one only."""
        return {}

    @property
    def changes(self) -> list[tuple[int, str]]:
        """(steps that were complete, what the model computes from there on, in a few words), for the curves."""
        return []

    @property
    def remarks(self) -> list[str]:
        """Sentences on how to read what is logged of the model, markdown."""
        return []

    def _start(self, run: TrainerRun, model: nn.Module) -> None:
        """Before training. Raises what stops it: errors of the user's configuration."""
        raise NotImplementedError

    def _go_on(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        """The first batch comes next: `run.global_step` is known, and what a checkpoint has kept."""
        raise NotImplementedError

    def _begin_batch(self, run: TrainerRun) -> None:
        """Before forward and backward of a batch, or of a micro-batch of a step."""
        raise NotImplementedError

    def _before_optimizer_step(self, optimizer: Optimizer | None) -> None:
        """Gradients are complete, and not clipped.

        Args:
            optimizer: the one that steps, where there are several.
        """

    def _end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        """After a batch and, where a step is complete, the optimizer's step.

        Args:
            loss: of the batch, its mean.
            is_last: metrics will be looked at now.
        """
        raise NotImplementedError

    def _end(self, run: TrainerRun) -> None:
        """Training is over."""
        raise NotImplementedError

    def _break_off(self, run: TrainerRun) -> None:
        """Training ends by an exception, be it Ctrl-C: keep what can be kept. Other processes may not take part."""

    def _state(self) -> dict[str, Any]:
        """For a checkpoint: tensors, numbers and strings. All processes ask."""
        raise NotImplementedError

    def _detach(self) -> None:
        """Leave the model as it was. May be called twice, and before `_start`."""
        raise NotImplementedError


def parts_of(run: TrainerRun) -> list[TrainingPart]:
    """The callbacks of ours in a training."""
    return [callback for callback in run.callbacks if isinstance(callback, TrainingPart)]


def others_workload(part: TrainingPart, run: TrainerRun) -> float:
    """Share of the work that the other callbacks leave to a step."""
    return math.prod(other.workload for other in parts_of(run) if other is not part)


def wrong_trainer(callback: object, *, given_to: str, right: str) -> ConfigurationError:
    """Error for a callback that was given to a trainer of another library.

    Args:
        given_to: that trainer, in words.
        right: package of attnwatch with the callbacks for it.
    """
    ours = next(kind for kind in type(callback).__mro__ if kind.__module__.startswith("attnwatch."))
    package = ours.__module__.replace(".trainers", "").rpartition(".")[0]
    return ConfigurationError(
        f"`callbacks`: {package}.{ours.__name__} was given to {given_to}, which calls other hooks. For this trainer: "
        f"from {right} import {ours.__name__}"
    )


def refuse_two(callbacks: Iterable[object], part: TrainingPart) -> None:
    """Check that a trainer has only one of a callback.

    Raises:
        ConfigurationError: it has two that do the same.
    """
    of_kind = [callback for callback in callbacks if isinstance(callback, type(part))]
    alike = [callback for callback in of_kind if callback.told_apart_by == part.told_apart_by]
    if len(alike) > 1:
        which = " and ".join(f"{name}={value!r}" for name, value in part.told_apart_by.items())
        raise ConfigurationError(
            f"`callbacks` has two {type(part).__name__}{which and f' with {which}'}: a trainer takes one, remove the "
            "other."
        )
