"""Calls of a module that go through a function first, outside of its hooks and of activation checkpointing."""

import copyreg
from collections.abc import Callable
from typing import Any

from torch import nn

_MARK = "_attnwatch_intercepted"
Run = Callable[..., Any]
"""The module's own call."""


def intercept(module: nn.Module, call: Callable[[Run, tuple, dict[str, Any]], Any]) -> Callable[[], None]:
    """`module(*args, **kwargs)` becomes `call(run, args, kwargs)`, where `run` is what it was.

    A hook, or another forward, would run inside `torch.utils.checkpoint` and once more in the backward. What stands
    outside is the module's call, which Python looks up in its class: so the module gets a subclass of its own for a
    while. Copies and pickles of it are of the class that it had.

    Returns:
        Puts the class back. Call it to end the interception.
    """
    original, is_on = type(module), True

    def __call__(self, *args, **kwargs):
        run = super(intercepted, self).__call__
        return call(run, args, kwargs) if is_on and self is module else run(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        _, _, state, *_ = super(intercepted, self).__reduce_ex__(protocol)
        return copyreg._reconstructor, (original, object, None), state

    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {"__call__": __call__, "__reduce_ex__": __reduce_ex__, _MARK: True}
    intercepted = type(original.__name__, (original,), {**names, **methods})
    module.__class__ = intercepted

    def put_back() -> None:
        nonlocal is_on
        is_on = False
        if type(module) is intercepted:  # somebody else may have given it another one since then
            module.__class__ = original

    return put_back


def original_class(module: nn.Module) -> type:
    """That it was built with, under those that interceptions and `fully_shard` have given to it since then."""
    kind = type(module)
    while _MARK in vars(kind) or _is_of_sharding(kind):
        kind = kind.__bases__[-1]
    return kind


def _is_of_sharding(kind: type) -> bool:
    """`fully_shard` (and `replicate`) give a module a class made of their own one and the module's."""
    return len(kind.__bases__) == 2 and kind.__bases__[0].__module__.startswith("torch.distributed.")


def is_intercepted(module: nn.Module) -> bool:
    return getattr(type(module), _MARK, False)
