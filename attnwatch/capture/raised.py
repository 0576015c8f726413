"""Forwards that raise: of a batch that was too large and is tried again, only the forward that ends counts."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn

from attnwatch.capture.delivery import in_backward
from attnwatch.capture.looking import compiles_anything
from attnwatch.utils.hooks import put

TakeBack = Callable[[], None]
Remember = Callable[[], TakeBack]
"""Returns what takes back everything that comes from now on."""


@contextlib.contextmanager
def raised_taken_back(model: nn.Module, is_armed: Callable[[], bool], remember: Remember) -> Iterator[None]:
    """While it is open, what came from a forward of `model` is taken back where that raises an `Exception`.

    Not in a process that compiles, where a hook that comes or goes would compile models once more.

    Args:
        model: the forwards of its parts, called directly, are not looked at.
        is_armed: whether calls of this thread are taken now.
        remember: called where a forward begins.
    """
    if compiles_anything():
        yield
        return
    begun: list[tuple[TakeBack, BaseException | None]] = []

    def is_seen() -> bool:
        return not torch.compiler.is_compiling() and is_armed() and not in_backward()

    def enter(module: nn.Module, args: tuple) -> None:
        if is_seen():
            begun.append((remember(), sys.exc_info()[1]))

    def leave(module: nn.Module, args: tuple, output: object) -> None:
        if begun and is_seen():
            take_back, handled_before = begun.pop()  # a second try may run where the first one's error is handled
            if sys.exc_info()[1] is not handled_before:
                take_back()

    handles = [
        model.register_forward_pre_hook(enter, prepend=True),
        model.register_forward_hook(leave, always_call=True),
    ]
    remove = put(model, handles=handles)
    try:
        yield
    finally:
        remove()
