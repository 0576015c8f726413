"""When heads go, and how many."""

import itertools
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError


@dataclass(frozen=True)
class PruningSchedule:
    """Cuts at evenly spaced steps, of equally many heads.

    Attributes:
        steps: after which optimizer step each cut is made, ascending.
        targets: share of the unpruned model's heads that is gone after each.
    """

    steps: tuple[int, ...]
    targets: tuple[float, ...]

    @classmethod
    def spread(
        cls, target: float, *, start: int | float, end: int | float, num_cuts: int, total_steps: float
    ) -> "PruningSchedule":
        """Cuts from `start` to `end`: steps where they are integers, else fractions of the run.

        Raises:
            ConfigurationError: the run is too short for so many cuts.
        """
        first, last = (max(at if isinstance(at, int) else round(at * total_steps), 1) for at in (start, end))
        if last - first < num_cuts - 1 or last >= total_steps:
            raise ConfigurationError(
                f"`num_cuts`: {num_cuts} cuts between steps {first} and {last} do not fit into a run of "
                f"{total_steps} steps."
            )
        between = (last - first) / max(num_cuts - 1, 1)
        return cls(
            tuple(round(first + index * between) for index in range(num_cuts)),
            tuple(target * (index + 1) / num_cuts for index in range(num_cuts)),
        )

    @property
    def gap(self) -> int | None:
        """Fewest steps between two cuts; None where there is only one."""
        return min((later - step for step, later in itertools.pairwise(self.steps)), default=None)

    def __str__(self) -> str:
        return ", ".join(f"{share:.0%} at step {step}" for step, share in zip(self.steps, self.targets, strict=True))
