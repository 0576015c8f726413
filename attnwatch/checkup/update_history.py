"""Updates of the weight matrices by the first optimizer steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnwatch.checkup.forward import CannotCheck
from attnwatch.checkup.updates import Update
from attnwatch.utils.messages import counted

NUM_UPDATES = 6
"""Number of optimizer steps after which the updates are judged."""


@dataclass(frozen=True)
class UpdateHistory:
    """Updates by the optimizer steps so far.

    Attributes:
        steps: updates of each step, by name of the matrix.
        has_parameters: False if the optimizers hold no parameters.
    """

    steps: Sequence[Mapping[str, Update]]
    has_parameters: bool

    def require(self, number: int = NUM_UPDATES) -> None:
        """Raise `CannotCheck` if fewer optimizer steps were seen."""
        if not self.has_parameters or len(self.steps) < number:
            raise CannotCheck(f"needs {counted(number, 'optimizer step')} of a training loop")

    def of_matrices(self, at_least: int = NUM_UPDATES) -> dict[str, list[Update]]:
        """Return the updates of each matrix so far, without steps with a learning rate of 0.

        Args:
            at_least: minimum number of steps that must have been seen.

        Raises:
            CannotCheck: fewer steps were seen, or no matrix was updated.
        """
        self.require(at_least)
        updates: dict[str, list[Update]] = {}
        for step in self.steps:
            for name, update in step.items():
                if update.schedule > 0:
                    updates.setdefault(name, []).append(update)
        if not updates:
            raise CannotCheck("no weight matrix has had a gradient and a learning rate above 0 so far")
        return updates

    def first(self) -> dict[str, Update]:
        """Return the first update of each matrix.

        Raises:
            CannotCheck: see `of_matrices`.
        """
        return {name: updates[0] for name, updates in self.of_matrices(at_least=1).items()}

    def ratios(self) -> dict[str, float]:
        """Return the largest ratio of update to weights for each matrix, scaled to the full rate of the schedule.

        Raises:
            CannotCheck: see `of_matrices`; all matrices start at zero, or none is finite.
        """
        return _finite(
            {
                name: max(float(each.change / each.before) / each.schedule for each in updates)
                for name, updates in self.of_matrices().items()
                if not updates[0].begins_at_zero
            }
        )

    def growths(self, at_least: int = NUM_UPDATES) -> dict[str, float]:
        """Return the factor by which the norm of each matrix has grown since the first step.

        Raises:
            CannotCheck: see `of_matrices`; all matrices start at zero, or none is finite.
        """
        return _finite(
            {
                name: float(each[-1].after / each[0].before)
                for name, each in self.of_matrices(at_least).items()
                if not each[0].begins_at_zero
            }
        )


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    if not numbers:
        raise CannotCheck("all weight matrices start at zero")
    finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
    if not finite:
        raise CannotCheck("no weight matrix has both a norm and updates that are finite")
    return finite
