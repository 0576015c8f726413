"""One cut, and the times of steps before and after it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from attnwatch.heads.plan import PruningPlan
from attnwatch.utils.messages import counted, duration

# Steps whose median time is compared.
_TIMED_STEPS = 20


@dataclass
class Cut:
    """One cut that was made. Prints as a sentence.

    Attributes:
        step: optimizer step after which it was made.
        plan: heads that were removed.
        seconds_before, seconds_after: median time of a step; None until it is known at equal numbers of tokens.
        seconds_lost: time of the cut, plus that of the first steps after it beyond that median (recompilation).
        taken_back: reason why the guard took the cut back; empty if it did not.
        keep_ratio: share of the tokens that the timed steps computed.
        speed_ceiling: largest possible speedup of a forward pass by this cut, from its FLOPs at the longest observed
            sequence; None if no sequence was observed.

    Example:
        >>> print(Cut(100, PruningPlan({"layers.0": (1, 3)}, {"layers.0": 4}), seconds_before=0.2, seconds_after=0.1))
        the cut after step 100 (2 heads): a step took 200 ms before, 100 ms after; the cut itself 0 ms
    """

    step: int
    plan: PruningPlan
    seconds_before: float | None = None
    seconds_after: float | None = None
    seconds_lost: float = 0.0
    taken_back: str = ""
    keep_ratio: float = 1.0
    speed_ceiling: float | None = None

    def __str__(self) -> str:
        heads = counted(self.plan.num_removed, "head")
        if self.taken_back:
            return f"the cut after step {self.step} ({heads}) was taken back: {self.taken_back}"
        if self.times is None:
            return f"{heads} removed after step {self.step}"
        before, after = map(duration, self.times)
        return (
            f"the cut after step {self.step} ({heads}): a step took {before} before, {after} after{self.tokens}; "
            f"the cut itself {duration(self.seconds_lost)}"
        )

    @property
    def times(self) -> tuple[float, float] | None:
        """Median times of a step before and after the cut; None until they can be compared."""
        if self.seconds_before is None or self.seconds_after is None:
            return None
        return self.seconds_before, self.seconds_after

    @property
    def tokens(self) -> str:
        """Phrase for the share of tokens that the timed steps computed; empty if they computed all."""
        return "" if self.keep_ratio == 1 else f", with {self.keep_ratio:.0%} of the tokens"


def step_times(cuts: Sequence[Cut]) -> str:
    """Return a phrase that compares steps before the first and after the last timed cut; empty if incomparable."""
    timed = [(cut, cut.times) for cut in cuts if cut.times is not None]
    if not timed or timed[0][0] is not cuts[0] or timed[0][0].keep_ratio != timed[-1][0].keep_ratio:
        return ""
    (first, (before, _)), (last, (_, after)) = timed[0], timed[-1]
    which = "the last" if last is cuts[-1] else f"that of step {last.step}"
    return f"; a step took {duration(before)} before the first cut, {duration(after)} after {which}{first.tokens}"


class CutTimes:
    """Times of the latest steps, used to time the cuts.

    Args:
        gap: smallest number of steps between two cuts; None if there is only one cut.
    """

    def __init__(self, gap: int | None):
        self._num_steps = min(_TIMED_STEPS, gap or _TIMED_STEPS)
        self._seconds: list[float] = []
        self._keep_ratio = 1.0

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that the latest steps computed."""
        return self._keep_ratio

    @property
    def median(self) -> float | None:
        """Median time of the latest steps in seconds; None if none was timed."""
        return statistics.median(self._seconds) if self._seconds else None

    def clear(self) -> None:
        """Discard the steps before a cut."""
        self._seconds.clear()

    def add(self, seconds: float | None, keep_ratio: float, last: Cut | None) -> bool:
        """Add a step.

        Args:
            seconds: duration of the step; None if unknown.
            keep_ratio: share of the tokens that the step computed.
            last: the most recent cut; its times are filled in once they are known.

        Returns:
            True if the time after the last cut became known.
        """
        if keep_ratio != self._keep_ratio:
            self._seconds.clear()
            self._keep_ratio = keep_ratio
        if last is not None and last.seconds_after is None and keep_ratio != last.keep_ratio:
            last.seconds_before = None  # nothing to compare the steps after it with
        if seconds is not None:
            self._seconds = [*self._seconds, seconds][-self._num_steps :]
        if last is None or last.seconds_after is not None or last.seconds_before is None:
            return False
        if len(self._seconds) < self._num_steps:
            return False
        last.seconds_after = statistics.median(self._seconds)
        last.seconds_lost += max(sum(self._seconds) - len(self._seconds) * last.seconds_after, 0.0)
        return True


def why_no_speedup(cuts: list[Cut], tolerance: float) -> str | None:
    """Return the reason why steps are not faster than before the first cut; None if they are, or are not timed.

    Args:
        cuts: cuts made so far.
        tolerance: share by which steps may be slower.
    """
    first, last = cuts[0], cuts[-1]
    before, after = first.seconds_before, last.seconds_after
    if before is None or after is None or first.keep_ratio != last.keep_ratio or after < before * (1 + tolerance):
        return None
    return f"a step takes {duration(after)}, before the first cut {duration(before)}"
