"""Steps of the cuts, and the number of heads that each removes."""

import itertools
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError
from attnwatch.schedules import Schedule, find_schedule


@dataclass(frozen=True)
class PruningSchedule:
    """Steps of the cuts, and the share of heads removed by then. Prints as a sentence.

    Attributes:
        steps: optimizer steps after which a cut is made, ascending.
        targets: share of the unpruned model's heads removed after each cut.
    """

    steps: tuple[int, ...]
    targets: tuple[float, ...]

    @classmethod
    def spread(
        cls,
        target: float,
        *,
        start: int | float,
        end: int | float,
        num_cuts: int,
        total_steps: float,
        schedule: str | Schedule = "linear",
    ) -> "PruningSchedule":
        """Spread cuts evenly from `start` to `end`, with sizes given by `schedule`.

        Args:
            target: share of the heads removed after the last cut.
            start: time of the first cut: a step if it is an integer, otherwise a fraction of the run.
            end: time of the last cut, likewise.
            num_cuts: number of cuts.
            total_steps: length of the run.
            schedule: `Schedule`, or its name, that maps the share of cuts made to the share of the target removed.

        Raises:
            ConfigurationError: the run is too short for so many cuts, or the schedule falls or does not end at 1.
        """
        first, last = (max(at if isinstance(at, int) else round(at * total_steps), 1) for at in (start, end))
        if last - first < num_cuts - 1 or last >= total_steps:
            raise ConfigurationError(
                f"`num_cuts`: {num_cuts} cuts between steps {first} and {last} do not fit into a run of "
                f"{total_steps} steps."
            )
        between = (last - first) / max(num_cuts - 1, 1)
        chosen = find_schedule("schedule", schedule)
        shares = [chosen.value((index + 1) / num_cuts) for index in range(num_cuts)]
        if shares != sorted(shares) or shares[-1] != 1:
            raise ConfigurationError(
                f"{chosen.registry.describe(chosen)} must rise to 1, because removed heads do not return; got "
                f"{', '.join(f'{share:.3g}' for share in shares)}."
            )
        steps = [round(first + index * between) for index in range(num_cuts)]
        cuts = [(step, target * share) for step, share in zip(steps, shares, strict=True) if share]
        return cls(tuple(step for step, _ in cuts), tuple(share for _, share in cuts))

    @property
    def gap(self) -> int | None:
        """Smallest number of steps between two cuts; None if there is only one cut."""
        return min((later - step for step, later in itertools.pairwise(self.steps)), default=None)

    def __str__(self) -> str:
        return ", ".join(f"{share:.0%} at step {step}" for step, share in zip(self.steps, self.targets, strict=True))
