"""Sampling of tensor entries."""

import torch
from torch import Tensor


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as real and imaginary parts in a last dimension of 2, and other tensors unchanged.

    Example:
        >>> import torch
        >>> as_real(torch.tensor([1 + 2j]))
        tensor([[1., 2.]])
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def spread_entries(tensor: Tensor, distance: int) -> Tensor:
    """Return entries of a tensor at this distance, or one more, as a view if the memory layout allows it.

    The distance is made odd: an even one would sample only a few columns of a matrix whose width is a power of two.

    Example:
        >>> import torch
        >>> spread_entries(torch.arange(12).view(3, 4), 4)
        tensor([ 0,  5, 10])
    """
    return tensor.detach().flatten()[:: max(distance, 1) | 1]
