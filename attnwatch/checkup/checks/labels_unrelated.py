"""Labels that are the same for all inputs, or appear unrelated to them, judging by what the model has learned."""

import contextlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence, later_points

_NUM_STEPS = 5
_LEAST_SEQUENCES = 8
# Texts that are noised anew share more of their tokens than this.
_ALIKE = 0.3
# Share of the loss by which exchanged labels must raise it.
_LEAST_RISE = 0.01


@register
class LabelsUnrelated(Check):
    """The loss does not rise when sequences exchange their labels, a tenth of the run in.

    At least 50 steps must have passed. In five batches, each sequence receives the labels of its neighbour, and the
    cross-entropy is recomputed from the same predictions. Shuffled labels look like this, but so does a model that has
    not begun to learn. The finding is therefore a note, and is withdrawn if labels matter at half of the run.

    If five batches of different tokens have the same labels in the same order, that is reported at once. Labels that
    are sorted, periodic, or different for all sequences, as those of samplers and of contrastive losses, do not count.
    """

    name = "labels_unrelated"
    severity = 0.7
    watches = looks_again = True
    remedy = (
        "Check that inputs and labels stay together when the data are shuffled, filtered or sorted; otherwise the "
        "model has not begun to learn from its inputs."
    )

    def __init__(self) -> None:
        self._losses: dict[float, dict[int, tuple[float, float]]] = {}
        self._batches: dict[int, tuple[Tensor, Tensor]] = {}

    def look(self, step: StepEvidence) -> Fault | None:
        if len(self._batches) < _NUM_STEPS:
            with contextlib.suppress(CannotCheck):
                if step.tokens.are_ids:
                    batch = step.tokens.values.clone(), step.targets.classes.clone()
                    self._batches.setdefault(step.global_step, batch)
        if _have_the_same_labels([*self._batches.values()]):
            return Fault(f"{_NUM_STEPS} batches of different tokens had the same labels in the same order")
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
        return Fault(what, numbers={"loss": loss, "loss_of_exchanged_labels": exchanged}, is_note=True)


def _have_the_same_labels(batches: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Return whether enough batches (ids, labels), none of which has the same ids, have labels in one random order."""
    if len(batches) < _NUM_STEPS:
        return False
    ids, labels = zip(*batches, strict=True)
    first = labels[0].flatten()
    if not all(torch.equal(each, labels[0]) for each in labels) or len(labels[0]) < _LEAST_SEQUENCES:
        return False
    if any(
        one.shape == other.shape and _likeness(one, other) > _ALIKE for one, other in itertools.combinations(ids, 2)
    ):
        return False
    is_periodic = any(torch.equal(first[period:], first[:-period]) for period in range(1, len(first) // 2 + 1))
    is_any_order = int((first.diff() != 0).sum()) >= len(first) / 2 and len(first.unique()) <= len(first) / 2
    return is_any_order and not is_periodic


def _likeness(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())


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
