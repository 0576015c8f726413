"""Labels that appear unrelated to the inputs, judging by what the model has learned."""

import torch
from torch.nn import functional as F

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence, later_points

_NUM_STEPS = 5
# Share of the loss by which exchanged labels must raise it.
_LEAST_RISE = 0.01


@register
class LabelsUnrelated(Check):
    """The loss does not rise when sequences exchange their labels, a tenth of the run in.

    At least 50 steps must have passed. In five batches, each sequence receives the labels of its neighbour, and the
    cross-entropy is recomputed from the same predictions. Shuffled labels look like this, but so does a model that has
    not begun to learn. The finding is therefore a note, and is withdrawn if labels matter at half of the run.
    """

    name = "labels_unrelated"
    status = None
    watches = looks_again = True
    remedy = (
        "Check that inputs and labels stay together when the data are shuffled, filtered or sorted; otherwise the "
        "model has not begun to learn from its inputs."
    )

    def __init__(self) -> None:
        self._losses: dict[float, dict[int, tuple[float, float]]] = {}

    def look(self, step: StepEvidence) -> Fault | None:
        if step.total_steps is None:
            raise CannotCheck("the number of steps in the run is unknown: pass `total_steps`")
        points = later_points(step.total_steps)
        if step.global_step < points[0]:
            raise CannotCheck(f"step {points[0]:.0f} has not been reached")
        losses = self._losses.setdefault(max(point for point in points if point <= step.global_step), {})
        losses[step.global_step] = _losses(step)
        if len(losses) < _NUM_STEPS:
            raise CannotCheck(f"{_NUM_STEPS} steps after a tenth of the run are needed")
        loss, exchanged = (sum(each) / len(losses) for each in zip(*losses.values(), strict=True))
        if exchanged > (1 + _LEAST_RISE) * loss:
            return None
        steps = f"in steps {min(losses)} to {max(losses)}"
        what = f"{steps} the loss was {loss:.4g}, and {exchanged:.4g} when each sequence got the labels of another"
        return Fault(what, numbers={"loss": loss, "loss_of_exchanged_labels": exchanged})


def _losses(step: StepEvidence) -> tuple[float, float]:
    """Return the cross-entropy with the targets, and with the targets of another sequence."""
    targets = step.targets
    if len(targets.classes) < 2:
        raise CannotCheck("the batch has one sequence")
    others, is_scored = targets.classes.roll(1, 0), targets.is_scored & targets.is_scored.roll(1, 0)
    if bool((others == targets.classes)[is_scored].all()):
        raise CannotCheck("all sequences in the batch have the same labels")
    scored = is_scored[targets.places]
    logits = targets.logits[scored].float()
    own, exchanged = (each[targets.places][scored].to(torch.int64) for each in (targets.classes, others))
    return float(F.cross_entropy(logits, own)), float(F.cross_entropy(logits, exchanged))
