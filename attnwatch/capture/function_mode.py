"""Calls of a torch function through references that were taken before it was patched, seen by a `TorchFunctionMode`."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _CallsOf(TorchFunctionMode):
    def __init__(self, function: Callable[..., Any], watched: Callable[..., Any]):
        super().__init__()
        self.function, self._watched = function, watched

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is self.function and not torch.compiler.is_compiling():
            return self._watched(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Thread(threading.local):
    def __init__(self) -> None:
        self.modes: list[tuple[object, _CallsOf | None]] = []


_thread = _Thread()


def begin(owner: object, function: Callable[..., Any], watched: Callable[..., Any]) -> None:
    """Until `end(owner)`, replace calls of `function` in this thread by `watched(*args, **kwargs)`, once."""
    mode = None
    if not _thread.modes:
        mode = _CallsOf(function, watched)
        mode.__enter__()
    _thread.modes.append((owner, mode))


def sees(function: Callable[..., Any]) -> bool:
    """Return whether a mode sees the calls of this function in this thread."""
    if torch.compiler.is_compiling():
        return False
    return any(mode is not None and mode.function is function for _, mode in _thread.modes)


def end(owner: object) -> None:
    """End `begin(owner)`, and what began after it and was interrupted."""
    for index in range(len(_thread.modes) - 1, -1, -1):
        if _thread.modes[index][0] is owner:
            _end_from(index)
            return


def forget() -> None:
    """End all modes: forwards that were interrupted have never ended."""
    _end_from(0)


def _end_from(index: int) -> None:
    while len(_thread.modes) > index:
        _, mode = _thread.modes.pop()
        if mode is not None:
            mode.__exit__(None, None, None)


def changes_path(module: nn.Module) -> bool:
    """Return whether modules in it take another path, with other roundings, while a function mode is on."""
    fast = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return any(isinstance(part, fast) for part in module.modules())
