"""Scales of hand-written attention, read from its products of queries and keys and its softmax calls."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attnwatch.checkup.attention_scale import NUM_ROWS, AttentionScale, norm_of_all, spread

_SOFTMAX = frozenset({torch.softmax, torch.nn.functional.softmax, Tensor.softmax})
_MATMUL = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})
_TIMES = frozenset({torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__})
_OVER = frozenset({torch.div, Tensor.div, Tensor.__truediv__})
_TANH = frozenset({torch.tanh, Tensor.tanh})
# Shorter axes are more often groups or classes than tokens.
_LEAST_TOKENS = 4
# Number of axes of queries and keys that were split into heads. Others may be states.
_AXES_OF_HEADS = 4
# Masks add -10,000 or less. Nothing is left of a logit to which the lowest float was added.
_LEAST_LOGIT, _NO_LOGIT = -5000.0, -1e30
# Largest relative error of logits that count as a multiple of a product, and minimum number of logits to compare.
_ROUNDING, _LEAST_COMPARED = 1e-2, 16
# Weights that are normalised over both axes in turn have row sums between this and its inverse.
_LEAST_SUM = 0.8


@dataclass(frozen=True)
class _Product:
    """Values of which the logits may be a multiple: products of queries and keys, or their hyperbolic tangents.

    Attributes:
        rows: some rows, [..., rows, keys].
        head_dim: number of features of a query; 0 if unknown.
        bound: upper bound of the entries; infinite if there is none.
        factor: number by which queries and keys were multiplied before.
    """

    rows: Tensor
    head_dim: int
    bound: float
    factor: float = 1.0


@dataclass(frozen=True)
class _Weights:
    """Attention weights of a softmax over another axis than the last.

    Attributes:
        name: name of the softmax call.
        axis: axis of the softmax, counted from the end.
        values: attention weights.
    """

    name: str
    axis: int
    values: Tensor

    def are_summed_over(self, operand: Tensor, axis: int) -> bool:
        """Return whether an operand is these weights, which do not sum to 1 over the axis that a product sums over."""
        if axis == self.axis or operand.shape != self.values.shape or not torch.equal(operand, self.values):
            return False
        sums = self.values.float().sum(axis)
        return float(sums.min()) < _LEAST_SUM or float(sums.max()) > 1 / _LEAST_SUM


class AttentionByHand(TorchFunctionMode):
    """Mode that reads the scale of each softmax over square logits [batch, …, tokens, tokens].

    Attributes:
        scales: scales of the softmax calls, in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scales: dict[str, AttentionScale] = {}
        self._products: list[_Product] = []
        self._weights: _Weights | None = None
        # By storage, which is kept so that no other takes its place.
        self._scaled: dict[int, tuple[Tensor, int, float]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and args and isinstance(args[0], Tensor) and _is_square(args[0]):
            name = f"softmax {len(self.scales) + 1}"
            self.scales[name] = scale = _scale_of(args[0].float(), result, self._products)
            axis = _axis_of_softmax(args, kwargs or {}, result.ndim)
            self._weights = _Weights(name, axis, result) if axis != -1 and scale.head_dim else None
            self._products, self._scaled = [], {}
        elif self._weights is not None and (summed := _summed(func, args)) is not None:
            if self._weights.are_summed_over(*summed):
                changed = dataclasses.replace(self.scales[self._weights.name], axis=self._weights.axis)
                self.scales[self._weights.name] = changed
            self._weights = None
        elif func in _TIMES or func in _OVER:
            self._keep_factor(func, args, result)
        elif isinstance(result, Tensor) and _is_square(result):
            self._products += _product_of(func, args, result, self._factor)
        return result

    def _keep_factor(self, func: Callable[..., Any], args: Sequence[Any], result: Any) -> None:
        """Keep the number by which queries or keys are multiplied before their product."""
        tensors = [each for each in args[:2] if isinstance(each, Tensor)]
        numbers = [float(each) for each in args[:2] if isinstance(each, int | float) and each]
        if len(tensors) == len(numbers) == 1 and isinstance(result, Tensor) and result.ndim >= _AXES_OF_HEADS:
            factor = numbers[0] if func in _TIMES else 1 / numbers[0]
            self._scaled[_storage(result)] = (result, result._version, factor * self._factor(tensors[0]))

    def _factor(self, tensor: Tensor) -> float:
        """Return the number by which a tensor, or the one of which it is a view, was multiplied."""
        _, version, factor = self._scaled.get(_storage(tensor), (tensor, -1, 1.0))
        return factor if version == tensor._version else 1.0  # it may have been changed in place


def _axis_of_softmax(args: Sequence[Any], kwargs: Mapping[str, Any], num_axes: int) -> int:
    """Return the axis of a call of softmax, counted from the end."""
    axis = kwargs["dim"] if "dim" in kwargs else next(iter(args[1:]), -1)
    if axis is None:  # the default of nn.Softmax
        axis = 0 if num_axes in (0, 1, 3) else 1
    return axis % num_axes - num_axes if isinstance(axis, int) else -1


def _summed(func: Callable[..., Any], args: Sequence[Any]) -> tuple[Tensor, int] | None:
    """Return the first operand of a product, and the axis over which it is summed; None for other calls."""
    if func in _MATMUL and args and isinstance(args[0], Tensor):
        return args[0], -1
    if func is not torch.einsum or len(args) < 2 or not isinstance(args[0], str):
        return None
    operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
    axes = _summed_axes(args[0])
    return (operands[0], axes[0]) if axes and isinstance(operands[0], Tensor) else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_square(logits: Tensor) -> bool:
    return logits.ndim > 2 and logits.shape[-1] == logits.shape[-2] >= _LEAST_TOKENS and logits.is_floating_point()


def _product_of(
    func: Callable[..., Any], args: Sequence[Any], result: Tensor, factor_of: Callable[[Tensor], float]
) -> list[_Product]:
    """Return the product of queries and keys that a call computes, or its hyperbolic tangent; nothing for other calls.

    Queries and keys lie along one axis each, and their products are summed over a third.

    Args:
        func, args, result: call and its result.
        factor_of: function that returns the number by which an operand was multiplied before.
    """
    if func in _TANH:
        return [_Product(_some_rows(result), 0, 1.0)]
    operands: Sequence[Any] = args[:2]
    axes: tuple[int, ...] = (-1, -2)
    if func is torch.einsum and isinstance(args[0], str):
        operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
        axes = _summed_axes(args[0])
    elif func not in _MATMUL:
        return []
    if len(operands) != 2 or len(axes) != 2 or not all(isinstance(each, Tensor) for each in operands):
        return []
    vectors = [each.movedim(axis, -1) for each, axis in zip(operands, axes, strict=True)]
    bound, factor = math.prod(map(norm_of_all, vectors)), math.prod(map(factor_of, operands))
    return [_Product(_some_rows(result), vectors[0].shape[-1], bound, factor)]


def _summed_axes(equation: str) -> tuple[int, ...]:
    """Return the axis of each `torch.einsum` operand that is summed over, from the end; empty unless it is one."""
    inputs, _, output = equation.replace(" ", "").replace("...", "").partition("->")
    names = inputs.split(",")
    summed = set.intersection(*map(set, names)) - set(output) if output else set()
    if len(summed) != 1:
        return ()
    (letter,) = summed
    return tuple(each.index(letter) - len(each) for each in names)


def _scale_of(logits: Tensor, weights: Tensor, products: Sequence[_Product]) -> AttentionScale:
    visible = ((weights > 0) & (logits > _NO_LOGIT)) | (logits > _LEAST_LOGIT)
    std = spread(logits.masked_fill(~visible, torch.nan))
    others = visible & ~torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    seen = others.flatten(1, -2).any(1) if logits.ndim > 3 else others.any(1)
    some, shown = _some_rows(logits), _some_rows(visible)
    factors = [(each, _factor(some[shown], each.rows, shown)) for each in products]
    known = [(each, factor) for each, factor in factors if math.isfinite(factor)]
    scales = ((factor * each.factor, each.head_dim) for each, factor in known if each.head_dim)
    scale, head_dim = next(scales, (math.nan, 0))
    is_normalised = any(each.head_dim and math.isfinite(each.bound) for each, _ in known)
    largest = min((abs(factor) * each.bound for each, factor in known), default=math.inf)
    std = std if known else math.nan  # the logits may contain a bias, such as that of ALiBi
    return AttentionScale(scale, head_dim, std, is_normalised, largest, seen)


def _factor(logits: Tensor, product: Tensor, visible: Tensor) -> float:
    """Return the factor between visible logits and a product of queries and keys; nan if it is not the same for all."""
    if product.numel() != visible.numel():
        return math.nan
    products = product.float().reshape(visible.shape)[visible]
    if len(products) < _LEAST_COMPARED:
        return math.nan
    factor = (logits @ products) / (products @ products)
    error = (logits - factor * products).norm() / logits.norm()
    return float(factor) if error < _ROUNDING else math.nan


def _some_rows(square: Tensor) -> Tensor:
    return square.detach()[..., :: max(square.shape[-2] // NUM_ROWS, 1), :]
