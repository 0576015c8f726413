"""Optimizers that step without gradients."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import NUM_UPDATES, StepEvidence


@register
class NoGradient(Check):
    """The optimizers find no gradients when they step, so that nothing is learned.

    Weight matrices are looked at in the first steps. Single matrices without a gradient, as those of unused modules,
    are not found.
    """

    name = "no_gradient"
    severity = 1.0
    remedy = (
        "Call backward before optimizer.step() and zero_grad() behind it, and check that the loss is computed from the "
        "model's output with gradients: no detach(), .item(), argmax or torch.no_grad() in between."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if not step.held or len(step.updates) < NUM_UPDATES:
            raise CannotCheck(f"{NUM_UPDATES} steps of an optimizer are needed")
        if any(step.updates):
            return None
        return Fault(f"no weight matrix had a gradient in the first {len(step.updates)} steps of the optimizers")
