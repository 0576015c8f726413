"""Weights that decay faster than they learn."""

import math

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

# In sound runs, the norms of matrices change by less than a percent in the first steps, or grow.
_MOST_LEFT = 0.9
_DECOUPLED = "Use AdamW, which decays the weights apart from the gradient, or a weight decay of 1e-4 or less."


@register
class WeightsShrink(Check):
    """The weights decay faster than they learn.

    The norms of half of the weight matrices have fallen by a tenth within six steps. Only strong regularisation does
    that: a weight decay of 0.1 at a learning rate of 1e-3 removes only a ten-thousandth of each weight per step. Adam
    adds the decay to the gradient, and divides both by their size: a decay of 1e-3 or more that is the larger part in
    half of the matrices, in each step, is reported too.
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
            return _of_decay(step)
        sites = tuple(name for name, growth in growths.items() if growth <= _MOST_LEFT)
        what = f"half of the weight matrices have lost {1 - middle:.0%} or more of their norm in the first steps"
        return Fault(what, sites, {"median_growth": middle})


def _of_decay(step: StepEvidence) -> Fault | None:
    """Return the fault for an optimizer that follows the weight decay more than the gradient."""
    shares = {
        name: min(share for each in updates if not math.isnan(share := float(each.decay)))
        for name, updates in step.updates.of_matrices().items()
        if any(not math.isnan(float(each.decay)) for each in updates)
    }
    middle = sorted(shares.values())[len(shares) // 2] if shares else 0.0
    if middle <= 1:
        return None
    sites = tuple(name for name, share in shares.items() if share > 1)
    what = f"in half of the weight matrices, the weight decay is at least {middle:.1f} times as large as the gradient"
    what += ", to which the optimizer adds it"
    return Fault(what, sites, {"decay_over_gradient": middle}, remedy=_DECOUPLED)
