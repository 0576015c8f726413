"""Outputs of real tokens that depend on the content of the padding."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, known, register
from attnwatch.checkup.checks.batch_mixing import mixed_tokens
from attnwatch.checkup.checks.future_leak import leaking_predictions
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.flow import Flow
from attnwatch.checkup.library import is_as_it_comes
from attnwatch.checkup.padding import GUESSED, NO_PADDING, padding_and_read, sees_only_padding
from attnwatch.utils.messages import counted


@register
class PaddingLeak(Check):
    """Outputs of real tokens depend on the padding.

    The padding of the batch is embedded as other tokens. Outputs of real tokens must not change; if they do, results
    depend on how sequences are batched. A mask that would fit if the sequences were in another order is also reported.
    The finding is a note if the mask leaves some padding visible in each sequence, if an unmodified transformers
    model leaks although its mask hides the padding, such as ConvBERT, whose convolutions read it, or if the padding is
    known only by its pattern: the same id, or features of zero, at the ends of sequences. If there is one
    target per sequence, the loss must not read the outputs at padding either.
    """

    name = "padding_leak"
    decides = True
    severity = 0.7
    remedy = (
        "Check that the padding mask (attention_mask, src_key_padding_mask) fits the batch, is passed to the model, "
        "and reaches the attention call of each layer and any pooling over tokens."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if num_read := _sequences_read_at_padding(step):
            what = f"the loss reads outputs at padding tokens in {num_read} of the first sequences"
            remedy = "Read the last real token of each sequence (with padding on the right, index -1 is padding)."
            return Fault(what, numbers={"sequences": float(num_read)}, is_note=step.tokens.is_guessed, remedy=remedy)
        tokens = step.tokens
        if number := tokens.num_of_others:
            what = (
                f"`{tokens.mask_name}` fits the texts in another order: it is wrong for {counted(number, 'sequence')}"
            )
            remedy = "Shuffle and sort texts and masks together."
            return Fault(what, numbers={"sequences": float(number)}, remedy=remedy)
        if number := tokens.num_too_long:
            what = f"in each padded sequence ({number}), `{tokens.mask_name}` leaves padding visible"
            what += "; it may also be an end-of-text token"
            remedy = "If it is padding, hide it in the mask."
            return Fault(what, numbers={"sequences": float(number)}, is_note=True, remedy=remedy)
        flow = step.flow
        share = moved_by_padding(flow)
        if not share or real_tokens_are_unseen(flow) or sees_only_padding(step) or _has_other_cause(step):
            return None
        flow.require_repeatable()
        given = (
            f"although `{flow.tokens.mask_name}` was given" if flow.tokens.mask_name else "and no mask was recognised"
        )
        if flow.tokens.is_guessed:
            given += GUESSED
        what = f"{share:.0%} of the outputs of real tokens change with the content of the padding, {given}"
        return Fault(
            what,
            numbers={"share_that_moves": share},
            is_note=_may_be_meant(step),
        )


def _may_be_meant(step: StepEvidence) -> bool:
    """Return whether a library leaks in spite of its mask, or what looks like padding may be none."""
    tokens = step.tokens
    return tokens.is_guessed or (tokens.is_hidden and is_as_it_comes(step.forward.module))


def _sequences_read_at_padding(step: StepEvidence) -> int:
    """Return the number of sequences whose one target is predicted from outputs at padding."""
    try:
        padding, read = padding_and_read(step)
        is_of_sequences = step.targets.classes.ndim == 1
    except CannotCheck:
        return 0
    return int((padding & read.has_gradient).any(1).sum()) if is_of_sequences else 0


def _has_other_cause(step: StepEvidence) -> bool:
    """Return whether the padding has an effect because sequences mix or later tokens are seen."""
    if step.flow.num_sequences > 1 and mixed_tokens(step.flow).any():
        return True
    return known(lambda: bool(leaking_predictions(step).any()), False)


def moved_by_padding(flow: Flow) -> float:
    """Return the share of the outputs of real tokens, or of sequences with padding, that change with the padding."""
    padding = flow.tokens.padding
    if not padding.any():
        raise CannotCheck(NO_PADDING)
    if padding.all():
        raise CannotCheck("all tokens in the batch are padding")
    if flow.has_other_outputs:
        raise CannotCheck(
            "the model returns more or fewer outputs than tokens, and which of them are of padding is unknown"
        )
    if flow.has_outputs_of_tokens:
        has_padding = padding.any(1, keepdim=True) & ~padding
        return float((flow.padded & ~padding).sum() / has_padding.sum().clamp(min=1))
    return float((flow.padded & padding.any(1)).sum() / padding.any(1).sum())


def real_tokens_are_unseen(flow: Flow) -> bool:
    """Return whether real tokens affect only their own outputs."""
    return not flow.sees_others
