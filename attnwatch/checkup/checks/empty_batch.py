"""Batches without anything to learn."""

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class EmptyBatch(Check):
    """The batch has nothing to learn from: only padding, or no targets.

    `torch.nn.functional.cross_entropy` returns nan for the mean over no targets.
    """

    name = "empty_batch"
    watches = True
    severity = 0.6
    remedy = "Check what the dataset and the collator return: truncation may have removed all that is to be learned."

    def look(self, step: StepEvidence) -> Fault | None:
        if step.tokens.padding.all():
            return Fault("all tokens in the batch are padding")
        if not step.targets.is_scored.any():
            return Fault("no token in the batch has a target: all labels are ignored")
        return None
