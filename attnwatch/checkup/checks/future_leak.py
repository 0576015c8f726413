"""Predictions that depend on the tokens that they are scored against."""

from torch import Tensor

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import is_encoder_decoder
from attnwatch.checkup.leaks import leaks
from attnwatch.checkup.read_tokens import read_of


@register
class FutureLeak(Check):
    """A next-token model sees the tokens that it should predict.

    Tokens from about the middle of the sequences on are replaced. Outputs before them that are scored against the next
    token must not change. A leak makes the loss unrealistically low, and the model useless for generation.
    """

    name = "future_leak"
    decides = True
    remedy = (
        "Mask later tokens (is_causal=True, or a causal mask added to the logits before the softmax), and do not "
        "mix tokens with convolutions, pooling or norms over the token axis."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        is_of_series = step.series is not None and step.series.shift == 1
        flow = step.flow_of_series if is_of_series else step.flow_of_predictions
        leaking, place = leaks(flow, ~flow.tokens.padding) if is_of_series else _leaks(step)
        if not leaking.any():
            return None
        flow.require_repeatable()
        share = float(leaking.float().mean())
        what = (
            f"{share:.0%} of the predictions up to about token {place} change when later tokens of "
            f"`{flow.tokens.name}` do: they depend on tokens that they must not see"
        )
        return Fault(what, numbers={"share_that_moves": share, "first_changed_token": float(place)})


def leaking_predictions(step: StepEvidence) -> Tensor:
    """Return a mask of the scored predictions that change with later tokens: bool [predictions].

    Raises:
        CannotCheck: the model is not a next-token model.
    """
    return _leaks(step)[0]


def _leaks(step: StepEvidence) -> tuple[Tensor, int]:
    """Return `leaking_predictions`, and the first place where tokens were replaced. They are computed once per step."""
    if "leaks" not in step.memo:
        step.memo["leaks"] = _of_predictions(step)
    leaking, place = step.memo["leaks"]
    return leaking, place


def _of_predictions(step: StepEvidence) -> tuple[Tensor, int]:
    if is_encoder_decoder(step.forward.module):
        raise CannotCheck("the tokens belong to the encoder, which may see all of them")
    if step.predicted_tokens.grid is not None or step.targets.shift(step.predicted_tokens.values) != 1:
        raise CannotCheck("the targets are not the next tokens, as in a language model")
    flow = step.flow_of_predictions
    if not flow.has_outputs_of_tokens:
        raise CannotCheck("the model does not return one output per token")
    is_scored = step.targets.is_scored[: flow.num_sequences] & ~flow.tokens.padding
    if (read := read_of(step.read, flow.tokens.length)) is not None:  # losses may be dropped after they are computed
        is_scored = is_scored & read.has_gradient[: flow.num_sequences].to(is_scored.device)
    return leaks(flow, is_scored)
