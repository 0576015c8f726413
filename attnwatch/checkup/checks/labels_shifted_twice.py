"""Labels shifted by both the script and the model, or by neither."""

from torch import Tensor

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import is_encoder_decoder

_SCORED_AGAINST = {
    -1: "the token before it, which the model is given",
    0: "its own token, which the model is given",
    2: "the token after the next",
}


@register
class LabelsShiftedTwice(Check):
    """Each token is scored against the token after the next, or the one after that.

    The targets of the cross-entropy are compared with the ids that the model received. A causal model whose targets are
    not shifted, or shifted the wrong way, is also reported: it only has to copy its input.
    """

    name = "labels_shifted_twice"
    decides = True
    remedy = (
        "Shift the labels exactly once: transformers models shift `labels` themselves, so pass a copy of `input_ids` "
        "(with -100 at positions to be ignored); in a loss of your own, compare logits[:, :-1] with labels[:, 1:]."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        shift = step.targets.shift(_predicted_ids(step))
        if shift is None:
            raise CannotCheck("the targets are not the tokens")
        if shift == 1 or (shift < 1 and not _is_causal(step)):
            return None
        what = _SCORED_AGAINST.get(shift, f"the token {shift} places further on")
        return Fault(f"each prediction is scored against {what}", numbers={"shift": float(shift)})


def _predicted_ids(step: StepEvidence) -> Tensor:
    """Return the ids that precede the predictions: those of the decoder, if the model was given any."""
    ids = step.forward.arguments.get("decoder_input_ids")
    if is_encoder_decoder(step.forward.module) and isinstance(ids, Tensor):
        return ids
    if not step.tokens.are_ids:
        raise CannotCheck("the model was given features, not token ids")
    return step.tokens.values


def _is_causal(step: StepEvidence) -> bool:
    """Return whether the outputs depend on earlier tokens and on no later ones."""
    if is_encoder_decoder(step.forward.module):
        return isinstance(step.forward.arguments.get("decoder_input_ids"), Tensor)  # decoders are causal
    return step.flow.is_causal
