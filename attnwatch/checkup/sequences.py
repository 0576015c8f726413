"""Sequences in the arguments of a forward pass: the first of them, or changed ones."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from attnwatch.checkup.forward import CannotCheck, tensors_in

_NOT_CUT = "the model received a {}, which can't be copied with fewer sequences"


def first_sequences(value: Any, size: int, number: int) -> Any:
    """Return a copy of an argument with only the first sequences of each tensor in it.

    Args:
        value: argument; values without tensors are returned unchanged.
        size: number of sequences in the batch. Tensors with another first dimension are not cut.
        number: number of sequences to keep.

    Raises:
        CannotCheck: the argument is an iterator, or a container that can't be rebuilt with other tensors.

    Example:
        >>> import torch
        >>> first_sequences({"ids": torch.arange(6), "mask": [torch.ones(2)]}, size=6, number=2)
        {'ids': tensor([0, 1]), 'mask': [tensor([1., 1.])]}
    """
    return changed_sequences(value, size, lambda tensor: tensor[:number])


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
        return value
    return _made_anew(value, {name: changed_sequences(part, size, change) for name, part in _parts(value).items()})


def _parts(value: Any) -> Mapping[Any, Any]:
    """Return the entries of a mapping, the fields of a dataclass, or the items of a list or tuple."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return dict(enumerate(value))


def _made_anew(value: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a container of the same class with other parts.

    Raises:
        CannotCheck: the class does not allow that.
    """
    try:
        container = _with_parts(value, parts)
    except Exception as error:  # from user classes
        raise CannotCheck(f"{_NOT_CUT.format(type(value).__name__)}: {type(error).__name__}: {error}") from error
    if {id(tensor) for _, tensor in tensors_in(container)} != {id(tensor) for _, tensor in tensors_in(parts)}:
        raise CannotCheck(_NOT_CUT.format(type(value).__name__))
    return container


def _with_parts(value: Any, parts: Mapping[Any, Any]) -> Any:
    if isinstance(value, dict | UserDict):
        container = copy.copy(value)
        for name, part in parts.items():
            container[name] = part
        return container
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **parts)
    make: Callable[..., Any] = getattr(value, "_make", type(value))
    return make(parts if isinstance(value, Mapping) else parts.values())
