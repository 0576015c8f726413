"""Observation of calls through references to an unpatched torch function, with a `TorchFunctionMode`."""

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
        self.owners: list[object] = []
        self.mode: _CallsOf | None = None


_thread = _Thread()


def begin(owner: object, function: Callable[..., Any], watched: Callable[..., Any]) -> None:
    """Replace calls of `function` in this thread by `watched(*args, **kwargs)`, once, until `end(owner)`."""
    if _thread.mode is None:
        _thread.mode = _CallsOf(function, watched)
        _thread.mode.__enter__()
    _thread.owners.append(owner)


def sees(function: Callable[..., Any]) -> bool:
    """Return whether calls of this function in this thread are replaced."""
    return not torch.compiler.is_compiling() and _thread.mode is not None and _thread.mode.function is function


def end(owner: object) -> None:
    """End `begin(owner)`, and anything that began after it and was interrupted."""
    begun = [index for index, each in enumerate(_thread.owners) if each is owner]
    if begun:
        _end_from(begun[-1])


def forget() -> None:
    """End everything, because interrupted forwards never end."""
    _end_from(0)


def _end_from(index: int) -> None:
    del _thread.owners[index:]
    if _thread.mode is not None and not _thread.owners:
        _thread.mode.__exit__(None, None, None)
        _thread.mode = None


def changes_path(module: nn.Module) -> bool:
    """Return whether modules inside take another path, with different rounding, while a function mode is active."""
    fast = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return any(isinstance(part, fast) for part in module.modules())
