"""Batches with nothing to learn from."""

from attnwatch.checkup.checks.base import Check, Fault, known, register
from attnwatch.checkup.containers import tensors_in
from attnwatch.checkup.evidence import StepEvidence

_NUM_STEPS, _LEAST_TARGETS = 6, 32
# With two classes, one may be rare: a hundred samples lack a class with a share of 1% in every third run.
_LEAST_CLASSES = 3


@register
class EmptyBatch(Check):
    """The batches contain nothing to learn from: only padding, one token, no targets, or only one class.

    `torch.nn.functional.cross_entropy` returns nan for the mean over no targets. A single class in all of the first
    steps means that the data are sorted or labels are lost. So does a single class per batch that differs between
    batches. The same class in all steps is a note if there are only two, of which one may be rare, or if the script
    ranks candidates, of which the first may always be the right one.
    """

    name = "empty_batch"
    watches = True
    severity = 0.6
    remedy = (
        "Check what the dataset and the collator return: truncation may have removed everything to be learned, and a "
        "mask of the prompt may cover the answer."
    )

    def __init__(self) -> None:
        self._classes: set[int] = set()
        self._numbers: dict[int, set[float]] = {}
        self._num_targets = 0
        self._has_one_class = True
        self._steps: set[int] = set()

    def look(self, step: StepEvidence) -> Fault | None:
        if known(lambda: bool(step.tokens.padding.all()) and not step.tokens.mask_fault, False):
            return Fault("all tokens in the batch are padding")
        if _are_alike(step):
            what = "all tokens in the batch have the same id, as if all words were unknown"
            return Fault(what, remedy="Check that the tokenizer is that of the model and of the language of the data.")
        if (constant := self._constant_targets(step)) is not None:
            what = f"all targets of the first {_NUM_STEPS} steps are {constant:.4g}"
            remedy = "Check how the targets are read: a share that is cast to an integer becomes 0."
            return Fault(what, numbers={"target": constant}, is_note=True, remedy=remedy)
        targets = step.targets
        if not targets.is_scored.any():
            return Fault("no prediction in the batch has a target: all labels are ignored")
        if targets.classes.ndim > 1:
            return None
        self._steps.add(step.global_step)
        self._classes |= set(targets.classes[targets.is_scored].tolist())
        self._num_targets += int(targets.is_scored.sum())
        self._has_one_class &= len(targets.classes[targets.is_scored].unique()) == 1
        if not self._has_one_class or len(self._steps) < _NUM_STEPS or self._num_targets < _LEAST_TARGETS:
            return None
        if len(self._classes) > 1:
            what = f"in the first {len(self._steps)} steps, each batch has a single class, not always the same"
            return Fault(what, numbers={"classes": float(len(self._classes))}, remedy="Shuffle the data.")
        what = f"all {self._num_targets} targets of the first {len(self._steps)} steps are class {min(self._classes)}"
        is_note = targets.num_classes < _LEAST_CLASSES or not _are_outputs(step, targets.num_classes)
        remedy = "Shuffle the data, and check how the labels are read."
        return Fault(what, numbers={"targets": float(self._num_targets)}, is_note=is_note, remedy=remedy)

    def _constant_targets(self, step: StepEvidence) -> float | None:
        """Return the number that all targets of the first steps are, in a loss other than cross-entropy; else None."""
        if step.scored or not step.losses or not all(call.bounds for call in step.losses):
            return None
        self._numbers[step.global_step] = {float(each) for call in step.losses for each in call.bounds}
        if len(self._numbers) < _NUM_STEPS:
            return None
        different = set().union(*self._numbers.values())
        return different.pop() if len(different) == 1 else None


def _are_outputs(step: StepEvidence, num_classes: int) -> bool:
    """Return whether the model returns class scores. If it ranks candidates, the first may always be the right one."""
    given = [value for _, value in tensors_in(step.forward.arguments) if not value.is_floating_point()]
    if any(value.ndim > 2 and value.shape[1] == num_classes for value in given):  # ids [batch, candidates, tokens]
        return False
    return any(shape and shape[-1] == num_classes for shape in step.forward.shapes.values())


def _are_alike(step: StepEvidence) -> bool:
    tokens = known(lambda: step.tokens, None)
    if tokens is None or tokens.is_guessed:  # what looks like padding may be none
        return False
    real = tokens.values[~tokens.padding]
    return tokens.are_ids and len(real) >= _LEAST_TARGETS and bool((real == real[0]).all())
