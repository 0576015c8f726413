"""Padding that is counted in the loss."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class PaddingInLoss(Check):
    """Predictions are scored against the padding.

    Cross-entropy targets count if they are at padding with padding on both sides. The first token after a sequence does
    not count, because it may be an end-of-text token with the same id as the padding.
    """

    name = "padding_in_loss"
    decides = True
    severity = 0.6
    remedy = (
        "Set the labels to -100 where the attention mask is 0, or pass the padding id to cross_entropy as ignore_index."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        padding, scored = step.padded_targets
        if not padding.any():
            raise CannotCheck("the batch has no padding")
        # A token and both neighbours are padding, so the target is too, whether it is the token itself or the next one.
        inside = padding[:, 2:] & padding[:, 1:-1] & padding[:, :-2] & scored[:, 1:-1]
        if not inside.any():
            return None
        share = float(inside.sum() / scored.sum())
        what = f"{share:.0%} of the targets of the loss are padding"
        return Fault(what, numbers={"share_of_targets": share})
