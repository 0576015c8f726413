"""Padding that is counted in the loss."""

from torch import Tensor

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, known, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import is_encoder_decoder
from attnwatch.checkup.padding import GUESSED, NO_PADDING, padding_and_read, padding_and_targets


@register
class PaddingInLoss(Check):
    """Predictions at the padding are part of the loss.

    The check reads the targets of the cross-entropy or, if the loss is computed by hand, the gradients at the outputs
    of the model. A padding token counts if both of its neighbours are padding. The first padding token after a sequence
    may be an end-of-text token with the same id, so the finding is a note if only that token is scored.
    """

    name = "padding_in_loss"
    decides = True
    severity = 0.6
    remedy = (
        "Set the labels to -100 where the attention mask is 0, or pass the padding id to cross_entropy as "
        "ignore_index; leave the padding out of sums and means over tokens."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        padding, scored = _scored_by_calls(step) if _has_targets(step) else _scored_by_hand(step)
        if not padding.any():
            raise CannotCheck(NO_PADDING)
        # A token and both neighbours are padding, so the target is too, whether it is the token itself or the next one.
        inside = padding[:, 2:] & padding[:, 1:-1] & padding[:, :-2] & scored[:, 1:-1]
        if not inside.any():
            return _of_first_padding(step)
        share = float(inside.sum() / scored.sum())
        is_guessed = known(lambda: step.predicted_tokens.is_guessed, False)
        what = f"{share:.0%} of the predictions that the loss reads are at padding tokens"
        what += GUESSED if is_guessed else ""
        return Fault(what, numbers={"share_of_targets": share}, is_note=is_guessed)


def _of_first_padding(step: StepEvidence) -> Fault | None:
    """Return a note if the last token of each padded sequence is scored against the padding after it.

    That padding token may be an end-of-text token with the same id.
    """
    if is_encoder_decoder(step.forward.module) or not _has_targets(step):
        return None
    padding, scored = _scored_by_calls(step)
    pad_id, classes = step.tokens.pad_id, step.targets.classes[: len(padding)]
    ends = padding[:, 1:] & ~padding[:, :-1]
    if pad_id is None or step.targets.shift(step.tokens.values) != 1 or int(ends.sum()) < 2:
        return None
    if not bool((scored & (classes == pad_id))[:, :-1][ends].all()):
        return None
    what = f"in each of {int(ends.sum())} padded sequences, the last token is scored against the padding token after it"
    what += ", which may also be an end-of-text token"
    remedy = "If it is padding, set its label to -100; a model that ends its texts must learn the end-of-text token."
    return Fault(what, numbers={"sequences": float(ends.sum())}, is_note=True, remedy=remedy)


def _scored_by_calls(step: StepEvidence) -> tuple[Tensor, Tensor]:
    """Return masks of the padding and of the targets, without the targets whose losses are dropped afterwards."""
    padding, scored = padding_and_targets(step)
    try:
        _, read = padding_and_read(step)
    except CannotCheck:
        return padding, scored
    number = len(read.has_gradient)
    return padding[:number], scored[:number] & read.has_gradient.to(scored.device)


def _scored_by_hand(step: StepEvidence) -> tuple[Tensor, Tensor]:
    padding, read = padding_and_read(step)
    return padding, read.has_class


def _has_targets(step: StepEvidence) -> bool:
    return known(lambda: bool(step.targets.classes.numel()), False)
