"""Tokens that depend on no other token."""

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class BlindAttention(Check):
    """No token depends on any other.

    Every second token is replaced, then the others. Outputs of the tokens that stay must move. A model whose weights
    begin at zero is looked at again after the first steps.
    """

    name = "blind_attention"
    remedy = (
        "Check the attention mask (its shape, and whether True means visible), the sliding window, and the document "
        "ids of packed sequences; a batch of sequences with one token each looks like this too."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if not find_sites(step.forward.module):
            raise CannotCheck("the model has no attention that is known")
        flow = step.flow
        step.forward.require_weights()
        sees_padding = flow.tokens.padding.any() and flow.padded.any()
        sees_others = flow.num_sequences > 1 and flow.others.any()
        if flow.sees_others or sees_padding or sees_others:  # the last two are an inverted mask and swapped axes
            return None
        return Fault("no output of a token changes when other tokens of its sequence do")
