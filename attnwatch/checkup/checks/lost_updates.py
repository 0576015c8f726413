"""Updates that are lost when the weights are rounded."""

import torch

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

_MOST_UNCHANGED = 0.8


@register
class LostUpdates(Check):
    """Most updates are too small for the precision of the weights, and change nothing.

    A weight in bfloat16 has 8 significant bits: a change below 1/512 of it is rounded away.
    """

    name = "lost_updates"
    severity = 0.6
    remedy = (
        "Keep the weights in float32 and use autocast, or use an optimizer with float32 master weights, stochastic "
        "rounding or Kahan summation."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        updates = step.updates_of_matrices()
        coarse = {
            name: min(float(each.unchanged) for each in of_steps)
            for name, of_steps in updates.items()
            if of_steps[0].dtype in (torch.bfloat16, torch.float16)
        }
        if not coarse:
            raise CannotCheck("the weights are not in half precision")
        middle = sorted(coarse.values())[len(coarse) // 2]
        if middle < _MOST_UNCHANGED:
            return None
        dtype = str(next(iter(updates.values()))[0].dtype).removeprefix("torch.")
        what = (
            f"in half of the {dtype} matrices, {middle:.0%} or more of the weights with a gradient stay the same in "
            "each step"
        )
        return Fault(what, tuple(coarse), {"share_unchanged": middle})
