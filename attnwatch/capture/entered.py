"""The watched modules in whose forward a thread is now, innermost last."""

import threading
from typing import NamedTuple

import torch
from torch import nn

from attnwatch.capture.delivery import in_backward


class Entry(NamedTuple):
    """A forward that has begun and not ended.

    Attributes:
        module: whose forward it is; None for a call that was looked at already.
        number: of the module, under which its calls are delivered; None where they are not.
        same_tokens: queries and keys are the same tokens, as far as is known.
        given: what the forward was given, positional and by name; None in compiled code.
    """

    module: nn.Module | None
    number: int | None
    same_tokens: bool = False
    given: tuple[tuple, dict] | None = None


class _Thread(threading.local):
    """A thread's own list: what another thread calls meanwhile is no call of these modules."""

    def __init__(self):
        self.entries: list[Entry] = []


_thread = _Thread()


def innermost() -> Entry | None:
    entries = _thread.entries
    return entries[-1] if entries else None


def enter(entry: Entry) -> None:
    if torch.compiler.is_compiling() or not in_backward():
        _thread.entries.append(entry)


def leave(module: nn.Module | None) -> None:
    """The forward of `module` has ended, and with it what it had entered and what raised."""
    entries = _thread.entries
    if torch.compiler.is_compiling():
        if entries and entries[-1].module is module:
            entries.pop()
        return
    if in_backward():
        return
    for index in range(len(entries) - 1, -1, -1):
        if entries[index].module is module:
            del entries[index:]
            return


def forget() -> None:
    """Forwards that were interrupted have never ended."""
    _thread.entries.clear()
