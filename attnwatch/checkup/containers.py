"""Tensors in mappings, lists, tuples and dataclasses, as models receive and return them."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

_DEEPEST = 20


def tensors_in(output: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in mappings, lists, tuples and dataclasses with their names, or with indices as names.

    Containers are not entered beyond a depth of 20, because they may hold one another.
    """
    if isinstance(output, Tensor):
        yield "", output
    elif depth > _DEEPEST:
        return
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from ((str(name), each) for _, each in tensors_in(value, depth + 1))
    elif isinstance(output, list | tuple):
        for place, value in zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True):
            yield from ((place, each) for _, each in tensors_in(value, depth + 1))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from ((field.name, each) for _, each in tensors_in(getattr(output, field.name, None), depth + 1))


def parts_of(value: Any) -> Mapping[Any, Any]:
    """Return the entries of a mapping, the fields of a dataclass or named tuple, or the items of a list or tuple."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return value._asdict() if hasattr(value, "_asdict") else dict(enumerate(value))


def with_parts(value: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a container of the same class with other parts, named as in `parts_of`.

    Raises:
        Exception: that of the class; a TypeError if the new container has other tensors than the parts.
    """
    before = {name: value[name] for name in parts} if isinstance(value, dict | UserDict) else {}
    container = _made_of(value, parts)
    if any(value[name] is not part for name, part in before.items()):
        for name, part in before.items():
            value[name] = part
        raise TypeError(f"a copy of a {type(value).__name__} shares its entries")
    if {id(tensor) for _, tensor in tensors_in(container)} != {id(tensor) for _, tensor in tensors_in(parts)}:
        raise TypeError(f"the new {type(value).__name__} has other tensors than were given")
    return container


def _made_of(value: Any, parts: Mapping[Any, Any]) -> Any:
    if isinstance(value, dict | UserDict):
        container = copy.copy(value)
        for name, part in parts.items():
            container[name] = part
        return container
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **parts)
    make: Callable[..., Any] = getattr(value, "_make", type(value))
    return make(parts if isinstance(value, Mapping) else parts.values())
