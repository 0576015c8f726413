"""Forwards that raise: of a batch that was too large and is tried again, only the forward that ends counts."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from attnwatch.capture.compilation import compiles_anything
from attnwatch.capture.forward_pass import in_backward
from attnwatch.utils.hooks import put

Undo = Callable[[], None]
Remember = Callable[[], Undo]
"""Returns a function that undoes everything that comes from now on."""


@contextlib.contextmanager
def failed_forwards_undone(model: nn.Module, is_armed: Callable[[], bool], remember: Remember) -> Iterator[None]:
    """While open, undo what came from a forward of `model` that raises an `Exception`.

    It does nothing in a process that compiles, where hooks that come or go would compile models once more.

    Args:
        model: model whose forwards are watched; those of its parts, called directly, are not.
        is_armed: whether calls of this thread are taken now.
        remember: called when a forward begins.
    """
    if compiles_anything():
        yield
        return
    begun: list[tuple[Undo, BaseException | None]] = []

    def is_seen() -> bool:
        return not torch.compiler.is_compiling() and is_armed() and not in_backward()

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if is_seen():
            begun.append((remember(), sys.exc_info()[1]))

    def leave(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if begun and is_seen():
            undo, handled_before = begun.pop()  # a second try may run where the first one's error is handled
            if sys.exc_info()[1] is not handled_before:
                undo()

    handles = [
        model.register_forward_pre_hook(enter, prepend=True),
        model.register_forward_hook(leave, always_call=True),
    ]
    remove = put(model, handles=handles)
    try:
        yield
    finally:
        remove()
