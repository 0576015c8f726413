"""Learning rates that change nothing."""

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

# Fine-tuning with Adam at a rate of 1e-6 has 2e-5.
_LEAST = 1e-6
# A warm-up begins at 0, and leaves it with the second step.
_STEPS_WITHOUT_RATE = 8


@register
class RateTooLow(Check):
    """The updates are a millionth of the weights or less.

    The norm of each matrix's update is compared with the norm of the matrix over the first steps, at the learning rate
    that the schedule leads to. A rate that stays at 0 is reported too.
    """

    name = "rate_too_low"
    severity = 0.6
    remedy = "Raise the learning rate, and check how schedulers and parameter groups change it."

    def look(self, step: StepEvidence) -> Fault | None:
        rates = [update.schedule for updates in step.updates for update in updates.values()]
        if len(step.updates) >= _STEPS_WITHOUT_RATE and rates and not any(rates):
            return Fault(f"the learning rate was 0 in the first {len(step.updates)} steps")
        ratios = step.update_ratios()
        largest = max(ratios.values())
        if largest > _LEAST:
            return None
        what = f"no step changes a weight matrix by more than {largest:.1g} of its norm"
        return Fault(what, numbers={"largest_update_ratio": largest})
