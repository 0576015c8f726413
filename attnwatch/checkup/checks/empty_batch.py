"""Batches without anything to learn."""

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class EmptyBatch(Check):
    """The batch has nothing to learn from: only padding, or no target.

    The mean over no target is nan in `torch.nn.functional.cross_entropy`.
    """

    name = "empty_batch"
    watches = True
    severity = 0.6
    remedy = "Look at what the data set and the collator return: truncation may have cut off all that is to be learned."

    def look(self, step: StepEvidence) -> Fault | None:
        if step.tokens.padding.all():
            return Fault("all tokens of the batch are padding")
        if not step.targets.is_scored.any():
            return Fault("no token of the batch has a target: all labels are ignored")
        return None
