"""Repeated batches."""

from collections import Counter
from collections.abc import Hashable, Sequence

import torch

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.utils.entries import as_real

_NUM_STEPS, _MOST_STEPS, _LEAST_SEQUENCES = 6, 10, 4
# Shorter rows, such as those of a table, may be equal by chance.
_LEAST_LENGTH = 8
# Decimal digits of fingerprints that do not depend on the order of summation.
_DIGITS = 6


@register
class RepeatedBatch(Check):
    """The first steps receive the same batch, a few alternating batches, or batches of a few sequences.

    Six to ten steps are compared. The order of the sequences does not matter. One batch that comes in half of the steps
    is reported too. The finding is a note if the epoch is equally short or its length unknown: overfitting one batch is
    a common test. Batches that consist of copies of one sequence, and gradients that are accumulated over copies of one
    batch, are always reported.
    """

    name = "repeated_batch"
    severity = 0.7
    remedy = (
        "Take the next batch in each step: next(iter(loader)) in a loop starts the data anew each time. Check that the "
        "dataset uses the index that it receives, and that an iterable dataset is shuffled."
    )

    def __init__(self) -> None:
        self._batches: dict[int, list[tuple[torch.Tensor, Hashable]]] = {}
        self._length = 0

    def look(self, step: StepEvidence) -> Fault | None:
        sequences = _sequences(step.forward.tensors)
        self._length = sequences.shape[1]
        self._batches.setdefault(step.global_step, []).append((_fingerprints(sequences), _use(step)))
        if len(self._batches) < _NUM_STEPS:
            raise CannotCheck(f"needs {_NUM_STEPS} steps")
        of_steps = [[(_comparable(each), use) for each, use in batches] for batches in self._batches.values()]
        fault = self._fault([batches[0][0] for batches in of_steps], step.steps_per_epoch)
        if fault is None and all(len(batches) > 1 and len(set(batches)) == 1 for batches in of_steps[:-1]):
            what = (
                f"in each of the first {len(of_steps) - 1} steps, gradients were accumulated over copies of one batch"
            )
            return Fault(what, remedy="Take the next batch for each backward pass.")
        if fault is None and len(of_steps) < _MOST_STEPS:
            raise CannotCheck(
                f"no batch came again in the first {len(of_steps)} steps; {_MOST_STEPS} steps are compared"
            )
        return fault

    def _fault(self, batches: Sequence[tuple[float, ...]], steps_per_epoch: int | None) -> Fault | None:
        """Return the fault for the first batches of the steps so far."""
        steps, size = len(batches), max(map(len, batches))
        if size >= _LEAST_SEQUENCES and all(len(set(batch)) == 1 for batch in batches):
            what = f"in each of the first {steps} steps, all {size} sequences of the batch are the same"
            return Fault(what, remedy="Check that the dataset uses the index that it receives.")
        counts = Counter(batches)
        number, most = len(counts), max(counts.values())
        num_sequences = len(set().union(*batches))
        what = f"the first {steps} steps received "
        if number == 1:
            what += "the same batch"
        elif number <= steps // 2:
            what += f"{number} batches in turn"
        elif 2 * most >= steps:
            what += f"one batch {most} times"
        elif _LEAST_SEQUENCES <= num_sequences <= size and self._length >= _LEAST_LENGTH:
            what += f"only {num_sequences} different sequences"
        else:
            return None
        is_meant = steps_per_epoch is None or steps_per_epoch <= number
        return Fault(what, numbers={"different_batches": float(number)}, is_note=is_meant)


def _use(step: StepEvidence) -> Hashable:
    """Return what tells uses of a batch apart: the weights, which SAM and L-BFGS change in between, and the losses."""
    losses = tuple((call.name, call.size, call.size_of_targets) for call in step.losses)
    return sum(each._version for each in step.trainable.values()), losses


def _comparable(fingerprints: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(each, _DIGITS) for each in fingerprints.tolist())


def _sequences(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the tensors that the model received as one matrix [sequences, numbers]."""
    size = max((len(tensor) for tensor in tensors if tensor.ndim), default=1)
    fitting = (as_real(tensor.detach()) for tensor in tensors if tensor.ndim and len(tensor) == size)
    rows = [tensor.double().reshape(size, -1) for tensor in fitting]
    if not rows:
        raise CannotCheck("the model received no tensor with an entry for each sequence")
    return torch.cat(rows, 1)


def _fingerprints(values: torch.Tensor) -> torch.Tensor:
    """Return a number for each sequence, in ascending order."""
    return (values @ _weights(values.shape[1], values)).sort().values


def _weights(number: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1, number + 1, device=like.device, dtype=like.dtype).sin()
