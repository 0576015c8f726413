"""Predictions that depend on the token that they are scored against."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class FutureLeak(Check):
    """A next-token model sees the tokens that it is to predict.

    Tokens of the batch are replaced from the middle on. Outputs before the middle that are scored against the next
    token must not move. The loss falls below what is possible, and the model is useless when it generates.
    """

    name = "future_leak"
    remedy = (
        "Mask later tokens (is_causal=True, or a causal mask that is added to the logits before the softmax), and do "
        "not mix tokens by convolutions, pooling or norms over the token axis."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if step.targets.shift(step.tokens.values) != 1:
            raise CannotCheck("the tokens are not scored against the next ones, as those of a language model are")
        flow = step.flow
        if not flow.has_outputs_of_tokens:
            raise CannotCheck("the model has no output for each token")
        before = slice(0, flow.middle)
        is_scored = step.targets.is_scored[: flow.num_sequences, before]
        leaks = flow.later[:, before] & is_scored & ~flow.tokens.padding[:, before]
        if not leaks.any():
            return None
        share = float(leaks.sum() / is_scored.sum())
        what = (
            f"{share:.0%} of the predictions before token {flow.middle} change when `{flow.tokens.name}` changes from "
            "there on, and the first of these tokens is what they are to predict"
        )
        return Fault(what, numbers={"share_that_moves": share, "first_changed_token": float(flow.middle)})
