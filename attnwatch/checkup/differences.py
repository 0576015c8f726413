"""Differences between the outputs of repeated forward passes."""

import torch
from torch import Tensor

from attnwatch.checkup.forward import CannotCheck

# Rounding changes outputs by less than this share of the largest.
_ROUNDING = 3e-6


def differs(output: Tensor, before: Tensor, *, least: Tensor | None) -> Tensor:
    """Return which numbers differ, bool of the same shape.

    Args:
        output, before: outputs to compare.
        least: smallest difference that counts, 0-dimensional; None for all that are above rounding.

    Raises:
        CannotCheck: the shapes differ, or the outputs are not finite.
    """
    if output.shape != before.shape:
        raise CannotCheck(f"a repeated forward pass returns {list(output.shape)} instead of {list(before.shape)}")
    if not before.isfinite().all():
        raise CannotCheck("the outputs are not finite")
    rounding = _ROUNDING * before.abs().max()
    bound = rounding if least is None else torch.maximum(least, rounding)
    return (output - before).abs() > bound.clamp(min=1e-30)
