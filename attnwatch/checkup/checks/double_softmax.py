"""Losses that apply softmax or sigmoid to what has been through it already."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.losses import SIGMOID, SOFTMAX, LossCall


@register
class DoubleSoftmax(Check):
    """The loss applies softmax or sigmoid to probabilities, which are a softmax or sigmoid already.

    `torch.nn.functional.cross_entropy` and `binary_cross_entropy_with_logits` take logits. With probabilities, which
    lie between 0 and 1, the loss can't get small, and its gradients are small from the start. `nll_loss` takes
    log-probabilities; probabilities make it negative.
    """

    name = "double_softmax"
    decides = True
    severity = 0.8
    remedy = (
        "Pass the logits to the loss, without softmax or sigmoid in the model; nll_loss takes the output of "
        "log_softmax, and binary_cross_entropy that of sigmoid."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if not step.losses:
            raise CannotCheck("no call of a loss function of torch.nn.functional was seen")
        found = [call for call in step.losses if _is_double(call)]
        if not found:
            return None
        (call, *_) = found
        activation = "sigmoid" if call.computed_by.startswith(SIGMOID) else "softmax"
        return Fault(f"{call.name} was given probabilities, which are the output of {activation}, not logits")


def _is_double(call: LossCall) -> bool:
    if call.name == "binary_cross_entropy_with_logits":
        return call.computed_by.startswith((SIGMOID, SOFTMAX))
    return call.name in ("cross_entropy", "nll_loss") and call.are_distributions
