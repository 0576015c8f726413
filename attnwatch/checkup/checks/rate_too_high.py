"""Learning rates that overwrite the weights."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, RunStatus, register
from attnwatch.checkup.evidence import NUM_UPDATES, StepEvidence

# In sound runs the median matrix grows 1.2-fold in the first 40 steps; at a rate 100 times too high, 13-fold.
_MOST_GROWTH, _MOST_OF_ONE = 4.0, 10.0


@register
class RateTooHigh(Check):
    """The first steps overwrite the weights.

    The norms of half of the weight matrices have grown at least fourfold within six steps, or one of them tenfold.
    Matrices that are initially almost zero do not count.
    """

    name = "rate_too_high"
    status = RunStatus.UNSTABLE
    severity = 0.8
    remedy = "Lower the learning rate by a factor of 10 or more, or warm it up over a few hundred steps."

    def look(self, step: StepEvidence) -> Fault | None:
        growths = step.growths(at_least=1)
        middle = sorted(growths.values())[len(growths) // 2]
        if middle >= _MOST_GROWTH:
            sites = tuple(name for name, growth in growths.items() if growth >= _MOST_GROWTH)
            what = f"the norms of half of the weight matrices have grown at least {middle:.1f}-fold in the first steps"
            return Fault(what, sites, {"median_growth": middle})
        name, largest = max(growths.items(), key=lambda each: each[1])
        if largest >= _MOST_OF_ONE:
            what = f"the norm of {name} has grown {largest:.0f}-fold in the first steps"
            return Fault(f"{what}: check the rate of its parameter group", (name,), {"largest_growth": largest})
        if len(step.updates) < NUM_UPDATES:
            raise CannotCheck(f"{NUM_UPDATES} optimizer steps are needed, which only a training loop has")
        return None
