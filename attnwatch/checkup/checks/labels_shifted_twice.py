"""Labels shifted by both the script and the model, or by neither."""

from torch import Tensor

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, known, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import is_encoder_decoder
from attnwatch.checkup.series import Series
from attnwatch.checkup.targets import Targets

_SCORED_AGAINST = {
    -1: "the token before it, which the model is given",
    0: "its own token, which the model is given",
    2: "the token after the next",
}
# Masked language models mask 80% of the tokens that they restore, and a small share of all tokens.
_LEAST_TARGETS, _MOSTLY_MASKED = 16, 0.7
_MASKED = "Do not shift the labels of a masked language model: compare logits with labels at the same positions."
_MODEL_SHIFTS = (
    "each prediction is scored against the token after the next: the model shifts its inputs by one, and the loss "
    "shifts the targets again"
)
_SERIES = "Give the decoder the values before those that it predicts, beginning with the last known one."


@register
class LabelsShiftedTwice(Check):
    """Each token is scored against the token after the next, or the one after that.

    The targets of the cross-entropy are compared with the ids that the model received. A causal model whose targets are
    not shifted, or shifted the wrong way, is also reported: it only has to copy its input. So is a masked language
    model whose labels are shifted.
    """

    name = "labels_shifted_twice"
    decides = True
    remedy = (
        "Shift the labels exactly once: transformers models shift `labels` themselves, so pass a copy of `input_ids` "
        "(with -100 at positions to be ignored); in a loss of your own, compare logits[:, :-1] with labels[:, 1:]."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if step.series is not None:
            return _of_series(step, step.series)
        ids = _predicted_ids(step)
        shift = step.targets.shift(ids)
        if shift is None:
            if beside := _masked_beside(step, ids):
                where = "before" if beside > 0 else "after"
                what = f"predictions at the tokens {where} the masked ones are scored, not those at the masked ones"
                return Fault(what, numbers={"shift": float(beside)}, remedy=_MASKED)
            raise CannotCheck("the targets are not the tokens")
        if shift == 1 and not is_encoder_decoder(step.forward.module):
            is_shifted = known(lambda: step.flow_of_predictions.shifts_inputs, False)
            return Fault(_MODEL_SHIFTS, numbers={"shift": 2.0}) if is_shifted else None
        if shift == 1 or step.predicts_several_tokens or (shift < 1 and not _is_given(step, shift)):
            return None
        what = _SCORED_AGAINST.get(shift, f"the token {shift} places further on")
        # To repeat the token before is a task by which memory is tested.
        return Fault(f"each prediction is scored against {what}", numbers={"shift": float(shift)}, is_note=shift < 0)


def _of_series(step: StepEvidence, series: Series) -> Fault | None:
    """Return the note on a causal model that is given the values which it is scored against, as an autoencoder is."""
    flow = step.flow_of_series
    if series.shift or not flow.is_causal:
        return None
    what = f"each prediction is scored against the value of `{series.tokens.name}` at its own place, which it is given"
    return Fault(what, numbers={"shift": 0.0}, is_note=True, remedy=_SERIES)


def _masked_beside(step: StepEvidence, ids: Tensor) -> int:
    """Return how far the masked tokens of a masked language model are ahead of the scored ones, if not 0; else 0.

    Masked tokens have one id, that of the mask. It stands at most of the places that are restored and hardly anywhere
    else, and targets have other ids.
    """
    targets, padding = step.targets, step.predicted_tokens.padding
    if not ids.shape == targets.is_scored.shape == padding.shape or targets.num_classes <= int(ids.max()):
        return 0
    shares = {ahead: _shares_of_mask(ids, targets, padding, ahead) for ahead in (0, 1, -1)}
    found = [ahead for ahead, each in shares.items() if min(each) > _MOSTLY_MASKED and shares[0][0] < each[0] / 2]
    is_causal = bool(found) and known(lambda: step.flow_of_predictions.is_causal, True)
    return found[0] if found and not is_causal else 0


def _shares_of_mask(ids: Tensor, targets: Targets, padding: Tensor, ahead: int) -> tuple[float, float]:
    """Return the share of the mask among the tokens ahead of the scored ones, and the share of these in all masks."""
    length = ids.shape[1]
    here, there = slice(max(-ahead, 0), length - max(ahead, 0)), slice(max(ahead, 0), length + min(ahead, 0))
    scored, tokens = targets.is_scored[:, here] & ~padding[:, there], ids[:, there]
    if int(scored.sum()) < _LEAST_TARGETS:
        return 0.0, 0.0
    mask = tokens[scored].mode().values
    if bool((targets.classes[:, here][scored] == mask).any()):
        return 0.0, 0.0
    are_masks = tokens == mask
    return float(are_masks[scored].float().mean()), float((are_masks & scored).sum() / (ids == mask).sum())


def _predicted_ids(step: StepEvidence) -> Tensor:
    """Return the ids that precede the predictions: those of the decoder, if the model was given any."""
    ids = step.forward.arguments.get("decoder_input_ids")
    if is_encoder_decoder(step.forward.module) and isinstance(ids, Tensor):
        return ids
    if not step.predicted_tokens.are_ids or step.predicted_tokens.grid is not None:
        raise CannotCheck("the model was given features or several texts, not token ids [batch, tokens]")
    return step.predicted_tokens.values


def _is_given(step: StepEvidence, shift: int) -> bool:
    """Return whether a causal model is given the tokens that it is scored against."""
    if not is_encoder_decoder(step.forward.module):
        return step.flow_of_predictions.is_causal
    return shift == 0 and "decoder_input_ids" in step.forward.arguments and _decoder_sees_its_tokens(step)


def _decoder_sees_its_tokens(step: StepEvidence) -> bool:
    """Return whether the outputs of a decoder change with its own token, which it may shift itself."""
    repeats = step.repeats
    ids = repeats.arguments["decoder_input_ids"]
    changed = ids.clone()
    changed[:, 1] = ids[:, 1:].flip(1)[:, 0]
    moved = (repeats.output(decoder_input_ids=changed) - repeats.unchanged).abs().flatten(2).amax(-1)
    return moved.shape == ids.shape and bool(moved[:, 1].any())
