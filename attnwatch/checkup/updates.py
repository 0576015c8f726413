"""Weight updates by the optimizers, from sampled entries of some matrices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Adamax, NAdam, Optimizer, RAdam, RMSprop

from attnwatch.checkup.guard import Guard
from attnwatch.utils.entries import as_real, spread_entries

# Number of matrices sampled from each optimizer, evenly spread, and number of entries sampled from each matrix.
_NUM_MATRICES, _NUM_ENTRIES = 32, 1024
# Root mean square below which a matrix counts as zero.
_LEAST_ENTRY = 2e-3
# Smaller weight decays are usual with optimizers that add them to the gradient.
_LEAST_DECAY = 1e-3
# Optimizers that divide the gradient, with the weight decay in it, by its size.
_SCALING = (Adam, Adamax, NAdam, RAdam, RMSprop)


@dataclass(frozen=True)
class Update:
    """Change of one matrix by one step of an optimizer.

    Attributes:
        change, before, after: norms of the change, and of the weights before and after it, 0-dimensional tensors.
        along_gradient: cosine between the change and the gradient, 0-dimensional; negative if the loss falls.
        unchanged: share of the entries with a gradient that did not change, a 0-dimensional tensor.
        decay: norm of the weight decay in the gradient over the norm of the gradient, 0-dimensional; 0 for optimizers
            that do not scale the gradient, or decay the weights apart from it, and for decays below 1e-3.
        kept: share of the previous step's change that remains when this step begins, 0-dimensional; nan in the first
            step.
        entries: number of sampled entries.
        rate: learning rate of the step.
        schedule: learning rate of the step divided by the rate that the schedule scales; 1 without a schedule.
        dtype: dtype of the weights.
    """

    change: Tensor
    before: Tensor
    after: Tensor
    along_gradient: Tensor
    unchanged: Tensor
    decay: Tensor
    kept: Tensor
    entries: int
    rate: float
    schedule: float
    dtype: torch.dtype

    @property
    def begins_at_zero(self) -> bool:
        """True if the matrix was almost zero before the step, so that its growth is meaningless."""
        return float(self.before) < _LEAST_ENTRY * self.entries**0.5


class Updates:
    """Updates by the steps of some optimizers, measured on the device before and after each step.

    Args:
        model: model being trained.
        optimizers: optimizers that train it.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], guard: Guard):
        self._handles: list[Any] = []
        self._names = {each: name for name, each in model.named_parameters() if each.requires_grad and each.ndim > 1}
        self._before: dict[nn.Parameter, Tensor] = {}
        self._last: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}  # before and after the last step
        self.steps: list[Mapping[str, Update]] = []
        for optimizer in optimizers:
            inner = getattr(optimizer, "optimizer", optimizer)  # inside the wrapper of accelerate
            matrices = [each for group in inner.param_groups for each in group["params"] if each in self._names]
            chosen = matrices[:: math.ceil(len(matrices) / _NUM_MATRICES) or 1]
            self._handles.append(inner.register_step_pre_hook(guard(partial(self._begin, chosen))))
            self._handles.append(inner.register_step_post_hook(guard(partial(self._end, chosen))))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before.clear()
        self._last.clear()

    def _begin(self, matrices: Sequence[nn.Parameter], *step: Any) -> None:
        if torch.compiler.is_compiling():
            return
        # Lightning's optimizers compute the gradients in the step, in a closure.
        for matrix in matrices:
            self._before[matrix] = _sample(matrix)

    def _end(self, matrices: Sequence[nn.Parameter], optimizer: Optimizer, *step: Any) -> None:
        if torch.compiler.is_compiling():
            return
        updates: dict[str, Update] = {}
        for group in optimizer.param_groups:
            for matrix in group["params"]:
                before, gradient = self._before.pop(matrix, None), matrix.grad
                if before is None or gradient is None or gradient.layout is not torch.strided:
                    continue
                kept = _kept(before, self._last.get(matrix))
                decay = _coupled_decay(optimizer, group)
                updates[self._names[matrix]] = _update(before, matrix, gradient, kept, group, decay)
                self._last[matrix] = before, _sample(matrix)
        if matrices:  # otherwise unknown: the optimizer has only norms and biases, or copies of the weights
            self.steps.append(updates)


def _coupled_decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """Return the weight decay that an optimizer adds to the gradient before it scales it, as Adam does; otherwise 0."""
    decay = float(group.get("weight_decay", 0.0))
    is_coupled = type(optimizer) in _SCALING and not group.get("decoupled_weight_decay", False)
    return decay if is_coupled and decay >= _LEAST_DECAY else 0.0


def _update(
    before: Tensor, matrix: Tensor, gradient: Tensor, kept: Tensor, group: Mapping[str, Any], decay: float
) -> Update:
    """Return the change of a matrix since its entries were sampled as `before`."""
    after, slope = _exact(_sample(matrix)), _exact(_sample(gradient))
    change = after - _exact(before)
    has_gradient = slope != 0
    rate = float(group.get("lr", 1.0))
    return Update(
        change.norm(),
        _exact(before).norm(),
        after.norm(),
        torch.nn.functional.cosine_similarity(change, slope, dim=0),
        ((change == 0) & has_gradient).sum() / has_gradient.sum(),
        decay * (_exact(before) * has_gradient).norm() / slope.norm(),
        kept,
        len(after),
        rate,
        rate / float(group.get("initial_lr", rate) or 1.0),
        matrix.dtype,
    )


def _kept(now: Tensor, last: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the share of the last change that remains, given the entries before and after it."""
    if last is None:
        return now.new_full((), torch.nan)
    before, after = (_exact(each) for each in last)
    change = after - before
    return ((_exact(now) - before) * change).sum() / change.square().sum()


def _sample(matrix: Tensor) -> Tensor:
    numbers = as_real(matrix.detach())
    return spread_entries(numbers, numbers.numel() // _NUM_ENTRIES).clone()


def _exact(values: Tensor) -> Tensor:
    """Return values in float64, or in float32 on devices without it."""
    return values.float() if values.device.type == "mps" else values.double()
