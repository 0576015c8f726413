"""Labels that are the same for all inputs, or appear unrelated to them, judging by what the model has learned."""

import contextlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, known, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.later_points import later_points

_NUM_STEPS = 5
_LEAST_SEQUENCES = 8
# Before this step, language models mainly learn token frequencies.
_LEAST_STEP_OF_TOKENS = 200
_SHORTEST_RUN = 200
# Copies of a text with fresh noise share more of their tokens than this.
_ALIKE = 0.3
# Share of the loss by which exchanged labels must raise it.
_LEAST_RISE = 0.01


@register
class LabelsUnrelated(Check):
    """The loss does not rise when sequences exchange their labels, after a tenth of the run.

    At least 50 steps must have passed, and 200 if there is a label for each token, in a run of 200 or more. In five
    batches, each sequence receives the labels of its neighbour, and the loss is computed again from the same
    predictions. Shuffled labels look like this, but so does a model that has not begun to learn. The finding is
    therefore a note, and is withdrawn if labels matter at half of the run.

    If five batches of different tokens have the same labels in the same order, that is reported at once. Labels that
    are sorted, periodic, or different for all sequences, as those of samplers and of contrastive losses, do not count.
    Classes that are renumbered in each of five batches, in order of appearance, are also reported. So are predictions
    [8, 1] that a loss such as `mse_loss` compares with targets [8], because both are broadcast to [8, 8].
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
        self._ids: dict[int, Tensor] = {}
        self._labels: dict[int, Tensor] = {}

    def look(self, step: StepEvidence) -> Fault | None:
        if len(self._labels) < _NUM_STEPS:
            with contextlib.suppress(CannotCheck):
                self._labels[step.global_step] = step.targets.classes.clone()
                self._ids[step.global_step] = _ids_of(step)
        if _have_the_same_labels([(ids, self._labels[number]) for number, ids in self._ids.items()]):
            what = f"{_NUM_STEPS} batches of different tokens had the same labels in the same order"
            return Fault(what, remedy="Read the labels of each batch from the batch itself.")
        if _are_numbered_anew([*self._labels.values()]):
            what = f"in each of {_NUM_STEPS} batches, the classes are numbered in order of appearance"
            what += ", so one label may mean different classes"
            return Fault(what, remedy="Number the classes once, for the whole dataset.")
        if crossed := [call for call in step.losses if call.is_crossed]:
            sizes = [list(size) for size in (crossed[0].size, crossed[0].size_of_targets)]
            what = f"{crossed[0].name} compares predictions {sizes[0]} with targets {sizes[1]}"
            what += ": broadcasting compares each prediction with the targets of all others"
            return Fault(what, remedy="Give both the same shape, with squeeze(-1) or unsqueeze(-1).")
        if step.total_steps is None:
            raise CannotCheck("the number of steps in the run is unknown: pass `total_steps`")
        if step.total_steps < _SHORTEST_RUN:
            raise CannotCheck(f"the run has fewer than {_SHORTEST_RUN} steps, in which a model learns little")
        points = later_points(step.total_steps)
        are_of_tokens = known(lambda: step.targets.classes.ndim > 1, False)
        begin = max(points[0], _LEAST_STEP_OF_TOKENS if are_of_tokens else 0)
        if step.global_step < begin:
            raise CannotCheck(f"step {begin:.0f} has not been reached")
        losses = self._losses.setdefault(max(point for point in points if point <= step.global_step), {})
        losses[step.global_step] = _losses(step)
        if len(losses) < _NUM_STEPS:
            raise CannotCheck(f"needs {_NUM_STEPS} steps after a tenth of the run")
        loss, exchanged = (sum(each) / len(losses) for each in zip(*losses.values(), strict=True))
        if exchanged > (1 + _LEAST_RISE) * loss:
            return None
        steps = f"in steps {min(losses)} to {max(losses)}"
        what = f"{steps} the loss was {loss:.4g}, and {exchanged:.4g} when each sequence got the labels of another"
        return Fault(what, numbers={"loss": loss, "loss_of_exchanged_labels": exchanged}, is_note=True)


def _ids_of(step: StepEvidence) -> Tensor:
    """Return the ids of the tokens, with an id for padding that differs in each step."""
    tokens = step.tokens
    if not tokens.are_ids:
        raise CannotCheck("the model receives features")
    return tokens.values.masked_fill(tokens.padding, -1 - step.global_step)


def _are_numbered_anew(labels: Sequence[Tensor]) -> bool:
    """Return whether the classes of each batch are numbered in order of appearance, beginning with 0.

    At least three batches must be unsorted, with three classes or more and at least twice as many sequences.
    """
    if len(labels) < _NUM_STEPS or any(each.ndim > 1 or len(each) < _LEAST_SEQUENCES for each in labels):
        return False
    rows = [each.tolist() for each in labels]
    kinds = [list(dict.fromkeys(row)) for row in rows]
    mixed = [
        row != sorted(row) and not _are_periodic(each) and 3 <= len(kind) <= len(row) / 2
        for each, row, kind in zip(labels, rows, kinds, strict=True)
    ]
    return sum(mixed) > _NUM_STEPS / 2 and all(kind == list(range(len(kind))) for kind in kinds)


def _have_the_same_labels(batches: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Return whether enough batches (ids, labels) with different ids have the same labels in the same random order."""
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
    is_any_order = int((first.diff() != 0).sum()) >= len(first) / 2 and len(first.unique()) <= len(first) / 2
    return is_any_order and not _are_periodic(first)


def _are_periodic(labels: Tensor) -> bool:
    return any(torch.equal(labels[period:], labels[:-period]) for period in range(1, len(labels) // 2 + 1))


def _likeness(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())


def _losses(step: StepEvidence) -> tuple[float, float]:
    """Return the loss with the targets, and with the targets of another sequence."""
    for call in step.losses:
        if found := call.exchanged(step.forward.num_sequences):
            return found
    targets = step.targets
    if len(targets.classes) < 2:
        raise CannotCheck("the batch has one sequence")
    others, is_scored = targets.classes.roll(1, 0), targets.is_scored & targets.is_scored.roll(1, 0)
    if bool((others == targets.classes)[is_scored].all()):
        raise CannotCheck("all sequences in the batch have the same labels")
    scored = is_scored[targets.places]
    if not bool(scored.any()):
        raise CannotCheck("no token has a target both in its own sequence and in the next one")
    logits = targets.logits[scored].float()
    own, exchanged = (each[targets.places][scored].to(torch.int64) for each in (targets.classes, others))
    return float(F.cross_entropy(logits, own)), float(F.cross_entropy(logits, exchanged))
