"""Losses and gradients that are not finite, before they reach the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, RunStatus, known, register
from attnwatch.checkup.evidence import NO_GRADIENTS, StepEvidence


@register
class NonfiniteGradient(Check):
    """The gradients are not finite, or the loss itself is not.

    A GradScaler starts with a scale at which float16 gradients overflow, and skips these steps. Therefore, gradients
    under float16 autocast are not checked.
    """

    name = "nonfinite_gradient"
    watches = True
    status = RunStatus.UNSTABLE
    severity = 1.0
    remedy = (
        "Look for a division by zero, a log or square root of zero, or a softmax over a fully masked row, starting "
        "with the first name; use bfloat16 instead of float16."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        losses = [call.loss for call in step.scored]
        has_targets = known(lambda: bool(step.targets.is_scored.any()), False)
        if has_targets and any(not loss.isfinite().all() for loss in losses):
            return _lost(step)
        gradients = {
            name: each.grad
            for name, each in step.trainable.items()
            if each.grad is not None and each.grad.layout is torch.strided
        }
        if not gradients:
            raise CannotCheck(NO_GRADIENTS)
        if step.forward.uses_float16:
            raise CannotCheck("float16 gradients overflow while a GradScaler looks for its scale")
        wrong = _nonfinite(gradients)
        if not wrong:
            return None
        what = f"the gradients of {len(wrong)} of {len(gradients)} parameters are not finite, {wrong[-1]} first"
        return Fault(what, wrong, {"parameters": float(len(wrong))})


def _lost(step: StepEvidence) -> Fault:
    wrong = _nonfinite({name: each.detach() for name, each in step.trainable.items()})
    if not wrong:
        return Fault("the loss is not finite, although all weights are")
    what = f"the loss is not finite, nor are {len(wrong)} of {len(step.trainable)} parameters, {wrong[0]} first"
    return Fault(what, wrong, {"parameters": float(len(wrong))})


def _nonfinite(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    if not tensors:
        return ()
    each = torch._foreach_norm(list(tensors.values()))
    norms = torch.stack([norm.float().to(each[0].device) for norm in each])
    return tuple(name for name, norm in zip(tensors, norms.isfinite().tolist(), strict=True) if not norm)
