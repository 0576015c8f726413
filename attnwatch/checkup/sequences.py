"""Sequences in the arguments of a forward pass: the first of them, or changed ones."""

import copy
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

from torch import Tensor

from attnwatch.checkup.containers import parts_of, tensors_in, with_parts
from attnwatch.checkup.forward import CannotCheck


def first_sequences(value: Any, size: int, number: int) -> Any:
    """Return a copy of an argument with only the first sequences of each tensor in it.

    Args:
        value: argument; values without tensors are copied if they can be changed.
        size: number of sequences in the batch. Tensors with another first dimension are not cut.
        number: number of sequences to keep.

    Raises:
        CannotCheck: the argument is an iterator, or a container that can't be rebuilt with other tensors.

    Example:
        >>> import torch
        >>> first_sequences({"ids": torch.arange(6), "mask": [torch.ones(2)]}, size=6, number=2)
        {'ids': tensor([0, 1]), 'mask': [tensor([1., 1.])]}
    """
    try:
        return changed_sequences(value, size, lambda tensor: tensor[:number])
    except RecursionError:
        raise CannotCheck("the model received containers that hold one another") from None


def changed_sequences(value: Any, size: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of an argument with a function applied to each tensor in it that has an entry for each sequence.

    Args:
        value, size: see `first_sequences`.
        change: function of a tensor [sequences, …].

    Raises:
        CannotCheck: see `first_sequences`.

    Example:
        >>> import torch
        >>> changed_sequences([torch.arange(3), torch.arange(2)], 3, lambda tensor: tensor.flip(0))
        [tensor([2, 1, 0]), tensor([0, 1])]
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
        return (change(tensor) if tensor.ndim and len(tensor) == size else tensor).clone()
    if isinstance(value, Iterator):
        raise CannotCheck("the model received an iterator, which can be read only once")
    if type(value) in (list, tuple):
        return type(value)(changed_sequences(part, size, change) for part in value)
    if not any(True for _ in tensors_in(value)):
        return _copied(value)
    return _made_anew(value, {name: changed_sequences(part, size, change) for name, part in parts_of(value).items()})


def _copied(value: Any) -> Any:
    """Return a copy of a value without tensors if a forward may change it."""
    is_state = isinstance(value, list | dict | set) or (hasattr(value, "__dict__") and not callable(value))
    if not is_state or isinstance(value, Enum):
        return value
    try:
        return copy.deepcopy(value)
    except Exception as error:  # from user classes
        raise CannotCheck(f"the model received a {type(value).__name__}, which can't be copied: {error}") from error


def _made_anew(value: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a container of the same class with other parts.

    Raises:
        CannotCheck: the class does not allow that.
    """
    try:
        return with_parts(value, parts)
    except Exception as error:  # from user classes
        raise CannotCheck(
            f"the model received a {type(value).__name__}, which can't be copied with fewer sequences: "
            f"{type(error).__name__}: {error}"
        ) from error
