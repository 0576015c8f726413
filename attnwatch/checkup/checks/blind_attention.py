"""Tokens that depend on no other token."""

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.padding import sees_only_padding
from attnwatch.checkup.tokens import sequences_of_one_token
from attnwatch.checkup.weights import require_weights

_MANY_SEQUENCES = 8


@register
class BlindAttention(Check):
    """No token depends on any other, or all depend on the first one only.

    Every second token is replaced, then the others. Outputs of the unchanged tokens must change. A model with
    weights that are initially zero is checked again after the first steps.
    """

    name = "blind_attention"
    decides = True
    remedy = (
        "Check the attention mask (its shape, and whether True means visible), the sliding window, and the document "
        "ids of packed sequences."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if not find_sites(step.forward.module) and not step.repeats.scales:
            raise CannotCheck("no known attention was found in the model")
        number = sequences_of_one_token(step.forward.arguments)
        if number >= _MANY_SEQUENCES:
            what = f"the batch has {number} sequences of one token each, which can't attend to anything else"
            return Fault(what, remedy="Check the shape of the batch: the model may expect [batch, tokens].")
        flow = step.flow
        if flow.tokens.grid is not None and not flow.tokens.grid.is_known:
            raise CannotCheck("it is unknown what the tokens of the model are")
        require_weights(step.forward.module)
        if sees_only_padding(step):
            raise CannotCheck("attention sees only the padding")
        if not step.repeats.unchanged.any():
            raise CannotCheck("all outputs are zero")
        if flow.sees_first_only:
            return Fault(
                "the outputs of tokens change with the first token of their sequence, but with none of the others"
            )
        sees_padding = flow.tokens.padding.any() and flow.padded.any()
        sees_others = flow.num_sequences > 1 and flow.others.any()
        if flow.sees_others or sees_padding or sees_others:  # the last two mean an inverted mask and swapped axes
            return None
        return Fault("no token's output changes when the other tokens of its sequence do")
