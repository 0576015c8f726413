"""What is told of one cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from attnwatch.heads.plan import PruningPlan
from attnwatch.utils.messages import duration


@dataclass
class Cut:
    """One cut that was made.

    Attributes:
        step: after this optimizer step.
        plan: what went.
        seconds_before, seconds_after: median time of a step; None while it is not known, and where it is not known at
            equal numbers of tokens.
        seconds_lost: what the cut took, and the first steps after it beyond that median (recompilation).
        taken_back: why the guard took it back; empty where it did not.
        keep_ratio: share of the tokens that were computed in the steps that were timed.
    """

    step: int
    plan: PruningPlan
    seconds_before: float | None = None
    seconds_after: float | None = None
    seconds_lost: float = 0.0
    taken_back: str = ""
    keep_ratio: float = 1.0

    def __str__(self) -> str:
        heads = "1 head" if self.plan.num_removed == 1 else f"{self.plan.num_removed} heads"
        if self.taken_back:
            return f"the cut after step {self.step} ({heads}) is taken back: {self.taken_back}"
        if self.seconds_before is None or self.seconds_after is None:
            return f"{heads} removed after step {self.step}"
        return (
            f"the cut after step {self.step} ({heads}): a step took {duration(self.seconds_before)} before, "
            f"{duration(self.seconds_after)} after{self.tokens}; the cut itself {duration(self.seconds_lost)}"
        )

    @property
    def tokens(self) -> str:
        """Words on the tokens that were computed in the steps that were timed; empty where these were all."""
        return "" if self.keep_ratio == 1 else f", with {self.keep_ratio:.0%} of the tokens"


def step_times(cuts: Sequence[Cut]) -> str:
    """Words on the steps before the first cut and after the last that is timed; empty where they can't be compared."""
    timed = [cut for cut in cuts if cut.seconds_before is not None and cut.seconds_after is not None]
    if not timed or timed[0] is not cuts[0] or timed[0].keep_ratio != timed[-1].keep_ratio:
        return ""
    last = "the last" if timed[-1] is cuts[-1] else f"that of step {timed[-1].step}"
    return (
        f"; a step took {duration(timed[0].seconds_before)} before the first cut, "
        f"{duration(timed[-1].seconds_after)} after {last}{timed[0].tokens}"
    )
