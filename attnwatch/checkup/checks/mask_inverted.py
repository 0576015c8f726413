"""Attention that sees only the padding."""

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.checks.padding_leak import moved_by_padding, real_tokens_are_unseen
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.padding import sees_only_padding


@register
class MaskInverted(Check):
    """Attention sees the padding instead of the tokens: the mask is inverted.

    Either the mask passed to the model hides various ids and shows only one, everywhere or at one end of the sequences,
    or outputs of real tokens change when the padding is replaced but not when other real tokens are.
    """

    name = "mask_inverted"
    decides = True
    remedy = (
        "Invert the mask, or build it for the side that is padded: in `scaled_dot_product_attention` True means "
        "visible, in `key_padding_mask` of nn.MultiheadAttention True means hidden, and in the `attention_mask` of "
        "transformers 1 means visible."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if step.tokens.mask_fault:
            return Fault(f"`{step.tokens.mask_name}` {step.tokens.mask_fault}")
        if sees_only_padding(step):
            what = "attention hides the real tokens of padded sequences, and shows their padding"
            return Fault(what, is_note=step.tokens.is_guessed)
        flow = step.flow
        share = moved_by_padding(flow)
        if not share or not real_tokens_are_unseen(flow):
            return None
        what = f"{share:.0%} of the outputs of real tokens change with the padding, but none with other real tokens"
        return Fault(what, numbers={"share_that_moves": share}, is_note=flow.tokens.is_guessed)
