"""Learning rates that overwrite the weights."""

from attnwatch.checkup.checks.base import Check, Fault, RunStatus, register
from attnwatch.checkup.evidence import StepEvidence

# In sound runs the median matrix grows 1.2-fold in the first 40 steps; at a rate 100 times too high, 13-fold.
_MOST_GROWTH = 4.0
# For a matrix in a parameter group whose rate is much higher than that of most matrices.
_MOST_IN_GROUP, _HIGHER_RATE = 10.0, 10.0
# Updates of sound runs are at most 0.05 of the weights while the rate is warmed up.
_MOST_WHILE_RISING, _LAST_STEPS, _STEPS_OF_WARM_UP = 0.08, 3, 8


@register
class RateTooHigh(Check):
    """The first steps overwrite the weights.

    The norms of half of the weight matrices have grown at least fourfold within six steps, or that of one matrix
    tenfold at ten times the learning rate of most others. While the rate is still being warmed up, updates of 8% of the
    norm in three steps are reported. Matrices that are initially almost zero do not count.
    """

    name = "rate_too_high"
    status = RunStatus.UNSTABLE
    severity = 0.8
    remedy = "Lower the learning rate by a factor of 10 or more, or warm it up over a few hundred steps."

    def look(self, step: StepEvidence) -> Fault | None:
        growths = step.updates.growths(at_least=1)
        middle = sorted(growths.values())[len(growths) // 2]
        if middle >= _MOST_GROWTH:
            sites = tuple(name for name, growth in growths.items() if growth >= _MOST_GROWTH)
            what = f"the norms of half of the weight matrices have grown at least {middle:.1f}-fold in the first steps"
            return Fault(what, sites, {"median_growth": middle})
        rates = {name: updates[0].rate for name, updates in step.updates.of_matrices(at_least=1).items()}
        usual = sorted(rates.values())[len(rates) // 2]
        for name, growth in growths.items():
            if growth >= _MOST_IN_GROUP and rates[name] >= _HIGHER_RATE * usual:
                what = f"the norm of {name} has grown {growth:.0f}-fold in the first steps"
                what += f" at a learning rate of {rates[name]:.3g}; most matrices have {usual:.3g}"
                return Fault(what, (name,), {"growth": growth, "rate": rates[name]})
        step.updates.require()
        return _of_warm_up(step)


def _of_warm_up(step: StepEvidence) -> Fault | None:
    """Return the fault for updates that are already large while the rate still rises."""
    updates = [each[-_LAST_STEPS:] for each in step.updates.of_matrices().values() if not each[0].begins_at_zero]
    if not updates or not all(last[-1].schedule > last[0].schedule for last in updates):
        return None
    step.updates.require(_STEPS_OF_WARM_UP)
    ratios = sorted(min(float(each.change / each.before) for each in last) for last in updates)
    middle, rate = ratios[len(ratios) // 2], max(last[-1].rate for last in updates)
    if middle < _MOST_WHILE_RISING:
        return None
    what = f"half of the weight matrices change by at least {middle:.0%} of their norm in each step, and the learning "
    what += f"rate, {rate:.3g} so far, still rises"
    return Fault(what, numbers={"median_update_ratio": middle, "rate": rate})
