"""Gradients that accumulate over optimizer steps."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class GradientsNotCleared(Check):
    """Gradients of the previous step are not cleared, so new ones are added to them.

    When a parameter gets its first gradient after an optimizer step, its old gradient must be None or zero, or the sum
    must be cleared before the next step. Accumulation over micro-batches happens between two steps and is not reported.
    """

    name = "gradients_not_cleared"
    decides = True
    remedy = "Call optimizer.zero_grad() once for each optimizer.step(), before the next backward."

    def look(self, step: StepEvidence) -> Fault | None:
        if not step.held or not step.stale_gradients:
            raise CannotCheck(step.unseen or "needs 2 optimizer steps of a training loop")
        stale = {name: float(norm) for name, norm in step.stale_gradients.items() if float(norm) > 0}
        if not stale:
            return None
        name, norm = max(stale.items(), key=lambda each: each[1])
        what = f"the optimizer used a gradient of {name} that was added to the previous step's (norm {norm:.3g})"
        return Fault(what, tuple(stale), {"norm": norm})
