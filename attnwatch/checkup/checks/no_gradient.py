"""Optimizers that step without gradients."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import NUM_UPDATES, StepEvidence


@register
class NoGradient(Check):
    """The optimizers find no gradients when they step, so nothing is learned.

    Weight matrices are checked in the first steps. Single matrices without a gradient, such as those of unused modules,
    are not reported.
    """

    name = "no_gradient"
    severity = 1.0
    remedy = (
        "Call backward before optimizer.step() and zero_grad() after it, and check that the loss is computed from the "
        "model's output with gradients: no detach(), .item(), argmax or torch.no_grad() in between."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if not step.held or len(step.updates) < NUM_UPDATES:
            raise CannotCheck(f"{NUM_UPDATES} optimizer steps are needed")
        if any(step.updates):
            return None
        return Fault(f"no weight matrix had a gradient in the first {len(step.updates)} optimizer steps")
