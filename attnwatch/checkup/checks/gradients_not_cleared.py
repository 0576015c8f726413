"""Gradients that are added to those of steps that are over."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class GradientsNotCleared(Check):
    """Gradients of the last step were still there, and new ones are added to them.

    The first gradient that a parameter gets after a step of its optimizer must find none, or zeros, or be cleared
    before the next step. Accumulation over micro-batches adds gradients between two steps, and is not found.
    """

    name = "gradients_not_cleared"
    remedy = "Call optimizer.zero_grad() once for each optimizer.step(), before the next backward."

    def look(self, step: StepEvidence) -> Fault | None:
        if not step.held or not step.stale_gradients:
            raise CannotCheck("two steps of an optimizer are needed")
        stale = {name: float(norm) for name, norm in step.stale_gradients.items() if float(norm) > 0}
        if not stale:
            return None
        name, norm = max(stale.items(), key=lambda each: each[1])
        what = f"the gradient of {name} was added to that of the step before, of norm {norm:.3g}, and used"
        return Fault(what, tuple(stale), {"norm": norm})
