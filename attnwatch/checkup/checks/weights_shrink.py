"""Weights that decay faster than they learn."""

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

# In sound runs, the norms of matrices change by less than a percent in the first steps, or grow.
_MOST_LEFT = 0.9


@register
class WeightsShrink(Check):
    """The weights decay faster than they learn.

    The norms of half of the weight matrices have fallen by a tenth within six steps. Only strong regularisation does
    that: a weight decay of 0.1 at a learning rate of 1e-3 removes only a ten-thousandth of each weight per step.
    """

    name = "weights_shrink"
    severity = 0.7
    remedy = (
        "Lower the weight decay: 0.01 to 0.1 is usual with AdamW; 1e-4 with SGD and with Adam, which add the decay to "
        "the gradient."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        growths = step.updates.growths()
        middle = sorted(growths.values())[len(growths) // 2]
        if middle > _MOST_LEFT:
            return None
        sites = tuple(name for name, growth in growths.items() if growth <= _MOST_LEFT)
        what = f"half of the weight matrices have lost {1 - middle:.0%} or more of their norm in the first steps"
        return Fault(what, sites, {"median_growth": middle})
