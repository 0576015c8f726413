"""Labels shifted by both the script and the model."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class LabelsShiftedTwice(Check):
    """Each token is scored against the token after the next, or the one after that.

    The targets of the cross-entropy are compared with the ids that the model received.
    """

    name = "labels_shifted_twice"
    decides = True
    remedy = (
        "Shift the labels only once: transformers models shift `labels` themselves, so pass a copy of `input_ids` "
        "(with -100 at positions to be ignored)."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if not step.tokens.are_ids:
            raise CannotCheck("the model was given features, not token ids")
        shift = step.targets.shift(step.tokens.values)
        if shift is None:
            raise CannotCheck("the targets are not the tokens")
        if shift < 2:
            return None
        what = "the token after the next" if shift == 2 else f"the token {shift} places further on"
        return Fault(f"each prediction is scored against {what}", numbers={"shift": float(shift)})
