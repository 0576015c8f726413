"""State of a model that a forward pass changes, so that repeating it would have side effects."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import LARGEST_COPY

_LARGEST_CONTAINER = 1000


class ForwardState:
    """State of a module before a forward pass: versions of parameters and large buffers, and contents of containers.

    Args:
        module: module that is about to be called.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._versions = dict(_versions(module))
        self._containers = dict(_containers(module))

    def changed(self) -> str:
        """Return the name of something that changed or that yields new numbers each time; empty if nothing does."""
        for name, part in self._module.named_modules():
            for attribute, value in vars(part).items():
                if isinstance(value, torch.Generator):
                    return f"{name}.{attribute}, a random generator".lstrip(".")
        versions, containers = dict(_versions(self._module)), dict(_containers(self._module))
        changed = [name for name, version in self._versions.items() if versions.get(name) != version]
        changed += [name for name, items in self._containers.items() if containers.get(name) != items]
        return changed[0] if changed else ""


def _versions(module: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the version of each tensor and the address of its storage: `tensor.data = …` changes only the address."""
    buffers = ((name, buffer) for name, buffer in module.named_buffers() if buffer.numel() > LARGEST_COPY)
    for name, tensor in itertools.chain(module.named_parameters(), buffers):
        is_plain = type(tensor) in (Tensor, nn.Parameter)  # others may have no storage of their own
        yield name, (tensor._version, tensor.untyped_storage().data_ptr() if is_plain else 0)


def _containers(module: nn.Module) -> Iterator[tuple[str, list[Any]]]:
    """Yield the contents of lists, dicts and sets of modules, by identity; plain numbers are compared by value."""
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute.startswith("_") or type(value) not in (list, dict, set) or len(value) > _LARGEST_CONTAINER:
                continue
            items = value.items() if isinstance(value, dict) else enumerate(value)
            yield f"{name}.{attribute}".lstrip("."), [(key, _comparable(item)) for key, item in items]


def _comparable(item: Any) -> Any:
    return item if isinstance(item, bool | int | float | str | None) else id(item)
