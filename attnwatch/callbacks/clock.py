"""Times of optimizer steps."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from attnwatch.utils.messages import duration


class StepClock:
    """Measure the time that optimizer steps take, including all micro-batches."""

    def __init__(self) -> None:
        self._step = 0
        self._began: float | None = None

    def start(self, step: int) -> None:
        """Start measuring after this step."""
        self._step = step
        self._began = None

    def batch_starts(self) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def batch_ends(self, step: int) -> float | None:
        """Return the seconds that the step took; None if it is not complete."""
        if step == self._step or self._began is None:
            return None
        seconds, self._began, self._step = time.perf_counter() - self._began, None, step
        return seconds


@dataclass(frozen=True)
class Speedup:
    """Step times with some and with all of the tokens, at the same share of work left by other callbacks.

    Attributes:
        seconds, seconds_with_all: median times of a step.
        ceiling: speedup of a step whose cost is linear in tokens.
        others: share of the work that other callbacks left.
    """

    seconds: float
    seconds_with_all: float
    ceiling: float
    others: float

    @property
    def ratio(self) -> float:
        """Speedup over steps with all tokens."""
        return self.seconds_with_all / self.seconds


class StepTimes:
    """Times of steps, by share of tokens computed and share of work left by other callbacks."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[float, float], list[float]] = {}
        self._kept: dict[tuple[float, float], list[float]] = {}

    def add(self, seconds: float, *, keep_ratio: float, others: float, kept: float | None = None) -> None:
        """Add a step.

        Args:
            seconds: time of the step.
            keep_ratio: requested share of the tokens, by which steps are grouped.
            others: share of the work that other callbacks left.
            kept: share of the tokens that was actually computed; None means `keep_ratio`.
        """
        self._seconds.setdefault((keep_ratio, others), []).append(seconds)
        self._kept.setdefault((keep_ratio, others), []).append(keep_ratio if kept is None else kept)

    def summary(self, ceiling: Callable[[float], float]) -> str:
        """Describe the time that dropping tokens saved, all else equal; empty if no steps can be compared.

        Args:
            ceiling: function from the share of tokens to the largest possible speedup of a step.
        """
        ratios = sorted({ratio for ratio, _ in self._seconds} - {1.0})
        return "".join(self._summary_at(ratio, ceiling) for ratio in ratios)

    def speedup(self, ratio: float, ceiling: Callable[[float], float]) -> Speedup | None:
        """Return the speedup at a share of the tokens; None if no steps can be compared.

        Args:
            ratio: requested share of the tokens.
            ceiling: function from the share of tokens to the largest possible speedup of a step.
        """
        comparable = [others for of, others in self._seconds if of == ratio and (1.0, others) in self._seconds]
        if not comparable:
            return None
        others = max(comparable, key=lambda others: min(len(self._seconds[each, others]) for each in (ratio, 1.0)))
        at_most = ceiling(self._kept_share(ratio, others))
        return Speedup(self._median(ratio, others), self._median(1.0, others), at_most, others)

    def _summary_at(self, ratio: float, ceiling: Callable[[float], float]) -> str:
        speedup = self.speedup(ratio, ceiling)
        if speedup is None:
            is_one_model = len({others for _, others in self._seconds}) == 1
            return f"; {self._step(ratio, next(iter(self._seconds))[1])}" if is_one_model else ""
        of_others = "" if speedup.others == 1 else f", with {speedup.others:.0%} left by other callbacks in both"
        return (
            f"; {self._step(ratio, speedup.others)}, {duration(speedup.seconds_with_all)} with all: "
            f"{speedup.ratio:.2f} times as fast{of_others}; {speedup.ceiling:.2f} if cost were linear in tokens"
        )

    def _step(self, ratio: float, others: float) -> str:
        kept = self._kept_share(ratio, others)
        return f"a step took {duration(self._median(ratio, others))} with {kept:.0%} of them"

    def _kept_share(self, ratio: float, others: float) -> float:
        return statistics.mean(self._kept[ratio, others])

    def _median(self, ratio: float, others: float) -> float:
        return statistics.median(self._seconds[ratio, others])
