"""Calls of loss functions of `torch.nn.functional` in a step."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnwatch.checkup.loss_functions import ELEMENTWISE, LOSSES, LossFunctions

# Beginnings of the names of autograd nodes that only copy a tensor or change its shape.
_VIEWS = ("View", "Reshape", "Unsafe", "Clone", "Squeeze", "Unsqueeze", "Transpose", "Permute", "Slice", "Select", "TB")
_MOST_VIEWS = 6
_NUM_SEQUENCES = 8
SOFTMAX, SIGMOID = "SoftmaxBackward", "SigmoidBackward"
"""Beginnings of the names of the nodes of softmax and sigmoid."""
# Sums of probabilities in half precision differ from 1 by less.
_ROUNDING = 1e-2


@dataclass(frozen=True)
class LossCall:
    """Call of a loss function with predictions and targets.

    Attributes:
        name: name of the function in `torch.nn.functional`.
        size, size_of_targets: shapes of the predictions and of the targets.
        predictions, targets: those of the first sequences if each prediction has its own target; otherwise empty.
        bounds: lowest and highest target, 0-dimensional; empty unless each prediction has its own target.
        computed_by: name of the autograd node that computed the predictions, such as "SoftmaxBackward0", ignoring
            changes of their shape; empty if there is none.
        are_distributions: True if the predictions are the output of a softmax over the classes: the last axis in
            `kl_div`, and the second one in other losses.
        slopes: gradients that reached the loss, one tensor per backward pass; empty for losses that are not reduced.
    """

    name: str
    size: torch.Size
    size_of_targets: torch.Size
    predictions: Tensor
    targets: Tensor
    bounds: tuple[Tensor, ...]
    computed_by: str
    are_distributions: bool
    slopes: list[Tensor]

    @property
    def is_crossed(self) -> bool:
        """True if each prediction is compared with several targets, as shapes such as [8, 1] and [8] are broadcast."""
        if self.name not in ELEMENTWISE or self.size == self.size_of_targets:
            return False
        number = torch.broadcast_shapes(self.size, self.size_of_targets).numel()
        return number > max(self.size.numel(), self.size_of_targets.numel())

    def exchanged(self, num_sequences: int) -> tuple[float, float] | None:
        """Return the mean loss of the first sequences with their own targets, and with those of the next sequence.

        None if the sequences have no targets [batch, …] of their own, or all have the same.
        """
        if self.size[:1] != (num_sequences,) or len(self.targets) < 2:
            return None
        others = self.targets.roll(1, 0)
        if bool((self.targets == others).all()):
            return None
        loss: Callable[..., Tensor] = inspect.unwrap(getattr(F, self.name))
        return float(loss(self.predictions, self.targets)), float(loss(self.predictions, others))


def loss_calls(
    functions: LossFunctions, receive: Callable[[LossCall], None]
) -> contextlib.AbstractContextManager[None]:
    """Pass each call of a loss function of `torch.nn.functional` to `receive` while the context is open."""
    return functions.observed(LOSSES, _loss_call, receive)


def _loss_call(name: str, loss: Any, given: Mapping[str, Any]) -> LossCall | None:
    predictions, targets = given["input"], given["target"]
    if not all(type(each) in (Tensor, torch.nn.Parameter) for each in (loss, predictions, targets)):
        return None
    slopes: list[Tensor] = []
    if loss.requires_grad and not loss.ndim:
        loss.register_hook(lambda slope: slopes.append(slope.detach()))
    number = _NUM_SEQUENCES if name in ELEMENTWISE and predictions.shape == targets.shape and targets.ndim else 0
    computed_by = _computed_by(predictions)
    axis = -1 if name == "kl_div" else 1
    are_distributions = computed_by.startswith(SOFTMAX) and predictions.ndim > 1 and _sum_to_one(predictions, axis)
    return LossCall(
        name,
        predictions.shape,
        targets.shape,
        _first(predictions, number),
        _first(targets, number),
        tuple(targets.detach().aminmax()) if number and targets.numel() else (),
        computed_by,
        are_distributions,
        slopes,
    )


def _first(tensor: Tensor, number: int) -> Tensor:
    """Return a copy of the first entries as float32."""
    return tensor.detach()[:number].float().clone() if tensor.ndim else tensor.new_empty(0)


def _sum_to_one(predictions: Tensor, axis: int) -> bool:
    sums = predictions.detach().sum(axis, dtype=torch.float32)
    return bool((predictions >= 0).all() and ((sums - 1).abs() < _ROUNDING).all())


def _computed_by(tensor: Tensor) -> str:
    node = tensor.grad_fn
    for _ in range(_MOST_VIEWS):
        if node is None or not node.name().startswith(_VIEWS) or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return "" if node is None else node.name()
