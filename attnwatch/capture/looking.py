"""Attention that reading code does not find, found when it is called.

The frames of the running program say which module's forward is innermost, without a hook on any module. Calls through
references to `scaled_dot_product_attention` that were taken before it was patched are seen by a `TorchFunctionMode`.
"""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from attnwatch.capture.reading import SDPA

Given = tuple[tuple, dict]
"""What a forward was given, positional and by name."""


class Finder(Protocol):
    """What a capture that looks for sites offers to the patched calls."""

    def find(self, module: nn.Module, *, by_name: bool) -> bool: ...


class _Thread(threading.local):
    def __init__(self):
        self.finders: list[Finder] = []
        self.modes: list[tuple[object, TorchFunctionMode | None]] = []


_thread = _Thread()


def finders() -> list[Finder]:
    """Captures that look for sites in this thread now."""
    return _thread.finders


def begin_to_look(finder: Finder) -> None:
    _thread.finders.append(finder)


def end_to_look(finder: Finder) -> None:
    _thread.finders[:] = [other for other in _thread.finders if other is not finder]


def called_module() -> tuple[nn.Module, Given] | None:
    """The module whose forward is innermost in this thread, with what it was given; None outside of all."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__:
            values = frame.f_locals
            return values["self"], (values["args"], values["kwargs"])
        frame = frame.f_back
    return None


class _EveryCall(TorchFunctionMode):
    """Hands calls of `scaled_dot_product_attention` to `watched_call`, whatever reference they come through."""

    def __init__(self, watched_call: Callable[..., Any]):
        super().__init__()
        self._watched_call = watched_call

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is SDPA and not torch.compiler.is_compiling():
            return self._watched_call(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def see_every_call(owner: object, watched_call: Callable[..., Any]) -> None:
    """Until `see_no_more(owner)`, calls of this thread go to `watched_call(original, *args, **kwargs)`, once."""
    mode = None
    if not _thread.modes:
        mode = _EveryCall(watched_call)
        mode.__enter__()
    _thread.modes.append((owner, mode))


def sees_every_call() -> bool:
    """Whether a mode is on in this thread that sees the function itself."""
    return not torch.compiler.is_compiling() and bool(_thread.modes)


def see_no_more(owner: object) -> None:
    """Ends `see_every_call(owner)`, and what began after it and was interrupted."""
    for index in range(len(_thread.modes) - 1, -1, -1):
        if _thread.modes[index][0] is owner:
            _end_from(index)
            return


def forget() -> None:
    """Forwards that were interrupted have never ended."""
    _end_from(0)


def _end_from(index: int) -> None:
    while len(_thread.modes) > index:
        _, mode = _thread.modes.pop()
        if mode is not None:
            mode.__exit__(None, None, None)


def keeps_fast_paths(module: nn.Module) -> bool:
    """Whether modules in it take another path, with other roundings, while a `TorchFunctionMode` is on."""
    return any(
        isinstance(inner, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerEncoder)
        for inner in module.modules()
    )


def is_compiled(model: nn.Module) -> bool:
    """Whether a module in it was compiled: a mode that is on for one step would compile it once more."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )


def compiles_anything() -> bool:
    """Whether `torch.compile` was called in this process, for all that torch tells."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(compiler, "cached_backends", {})
    return any(backend is not None for backend in backends.values())  # None is of functions that are never compiled
