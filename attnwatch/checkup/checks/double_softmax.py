"""Losses that receive the output of a softmax or sigmoid instead of logits."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.losses import SIGMOID, SOFTMAX, LossCall

_OF_LOG_PROBABILITIES = ("nll_loss", "kl_div")


@register
class DoubleSoftmax(Check):
    """The loss receives probabilities instead of logits or log-probabilities.

    `torch.nn.functional.cross_entropy` and `binary_cross_entropy_with_logits` expect logits. Probabilities lie between
    0 and 1, so the loss can't become small, and its gradients are small from the start. `nll_loss` and
    `kl_div` expect log-probabilities; with probabilities, these losses are negative.
    """

    name = "double_softmax"
    decides = True
    severity = 0.8
    remedy = (
        "Remove the softmax or sigmoid before the loss, and pass it the logits. nll_loss and kl_div expect the output "
        "of log_softmax, and binary_cross_entropy that of sigmoid."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if not step.losses:
            raise CannotCheck(step.unseen or "no call of a supported loss function of torch.nn.functional was seen")
        found = [call for call in step.losses if _is_double(call)]
        if not found:
            return None
        (call, *_) = found
        activation = "sigmoid" if call.computed_by.startswith(SIGMOID) else "softmax"
        expected = "log-probabilities" if call.name in _OF_LOG_PROBABILITIES else "logits"
        return Fault(f"{call.name} received probabilities, the output of {activation}, but expects {expected}")


def _is_double(call: LossCall) -> bool:
    if call.name == "binary_cross_entropy_with_logits":
        return call.computed_by.startswith((SIGMOID, SOFTMAX))
    if call.name == "cross_entropy" and call.computed_by.startswith(SIGMOID):
        return True
    return call.name in ("cross_entropy", *_OF_LOG_PROBABILITIES) and call.are_distributions
