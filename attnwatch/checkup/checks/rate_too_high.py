"""Learning rates that overwrite the weights."""

from attnwatch.checkup.checks.base import Check, Fault, RunStatus, register
from attnwatch.checkup.evidence import StepEvidence

# Sound runs of all kinds have a largest ratio of 3e-4 to 3e-2 in their first 40 steps, and a rate 100 times too high
# one of 0.3 and more.
_MOST = 0.25


@register
class RateTooHigh(Check):
    """The updates are nearly as large as the weights.

    The ratio of the norm of a matrix's update to the norm of the matrix is taken over the first steps. Matrices that
    begin at zero have none. A schedule that has not reached its rate is accounted for.
    """

    name = "rate_too_high"
    status = RunStatus.UNSTABLE
    severity = 0.8
    remedy = "Lower the learning rate by a factor of 10 or more, or warm it up over some hundred steps."

    def look(self, step: StepEvidence) -> Fault | None:
        ratios = step.update_ratios()
        middle = sorted(ratios.values())[len(ratios) // 2]
        if middle < _MOST:
            return None
        sites = tuple(name for name, ratio in ratios.items() if ratio >= _MOST)
        what = f"one step changes half of the weight matrices by {middle:.0%} of their norm or more"
        return Fault(what, sites, {"median_update_ratio": middle})
