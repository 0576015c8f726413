"""Repeated batches."""

import torch

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.utils.entries import as_real

_NUM_STEPS = 6


@register
class RepeatedBatch(Check):
    """The first steps receive the same batch or a few alternating batches, in any order of their sequences.

    The finding is a note if the epoch is equally short or its length unknown: overfitting one batch is a common test.
    """

    name = "repeated_batch"
    severity = 0.7
    remedy = (
        "Take the next batch in each step (next(iter(loader)) in a loop restarts each time), and check that the "
        "dataset uses the index that it receives."
    )

    def __init__(self) -> None:
        self._fingerprints: dict[int, torch.Tensor] = {}

    def look(self, step: StepEvidence) -> Fault | None:
        self._fingerprints.setdefault(step.global_step, _fingerprint(step.forward.tensors))
        if len(self._fingerprints) < _NUM_STEPS:
            raise CannotCheck(f"{_NUM_STEPS} steps are needed")
        number = len({float(each) for each in self._fingerprints.values()})
        if number > _NUM_STEPS // 2:
            return None
        is_meant = step.steps_per_epoch is None or step.steps_per_epoch <= number
        batches = "the same batch" if number == 1 else f"{number} batches in turn"
        what = f"the first {_NUM_STEPS} steps received {batches}"
        return Fault(what, numbers={"different_batches": float(number)}, is_note=is_meant)


def _fingerprint(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return a number that depends on the sequences, but not on their order."""
    size = max((len(tensor) for tensor in tensors if tensor.ndim), default=1)
    fitting = (as_real(tensor.detach()) for tensor in tensors if tensor.ndim and len(tensor) == size)
    rows = [tensor.double().reshape(size, -1) for tensor in fitting]
    if not rows:
        raise CannotCheck("the model was given no tensor with sequences")
    values = torch.cat(rows, 1)
    of_sequences = values @ _weights(values.shape[1], values)
    return of_sequences.sort().values @ _weights(size, values)


def _weights(number: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1, number + 1, device=like.device, dtype=like.dtype).sin()
