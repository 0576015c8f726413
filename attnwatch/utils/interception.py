"""Interception of a module's calls by a function, outside its hooks and activation checkpointing."""

import copyreg
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex

from torch import nn

_CALLS = "_attnwatch_calls"
Run = Callable[..., Any]
"""Function that makes the module's own call."""
Call = Callable[[Run, tuple[Any, ...], dict[str, Any]], Any]


def intercept(module: nn.Module, call: Call) -> Callable[[], None]:
    """Turn `module(*args, **kwargs)` into `call(run, args, kwargs)`, where `run` is the call that it replaces.

    A hook, or a replaced forward, would run inside `torch.utils.checkpoint` and again in the backward. Python looks up
    `__call__` in the class, so the module temporarily gets its own subclass. Copies and pickles of the module have its
    original class. Several functions may intercept a module, and end in any order.

    Returns:
        Function that ends the interception. Ending the last one restores the class.
    """
    if _CALLS not in vars(type(module)):
        module.__class__ = _intercepted(module)
    intercepted = type(module)
    calls = vars(intercepted)[_CALLS]
    calls.append(call)

    def end() -> None:
        if call in calls:
            calls.remove(call)
        if not calls and type(module) is intercepted:  # other code may have changed it since
            module.__class__ = intercepted.__bases__[0]

    return end


def _intercepted(module: nn.Module) -> type:
    """Return a subclass of the module's class for this module only."""
    original: type[nn.Module] = type(module)
    calls: list[Call] = []

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run: Run = partial(original.__call__, self)
        if self is module:
            for call in calls:
                run = partial(_through, call, run)
        return run(*args, **kwargs)

    def __reduce_ex__(self: nn.Module, protocol: SupportsIndex) -> tuple[Any, ...]:
        state = original.__reduce_ex__(self, protocol)[2]
        return copyreg._reconstructor, (original, object, None), state  # type: ignore[attr-defined]  # typeshed lacks it

    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {"__call__": __call__, "__reduce_ex__": __reduce_ex__, _CALLS: calls}
    return type(original.__name__, (original,), {**names, **methods})


def _through(call: Call, run: Run, *args: Any, **kwargs: Any) -> Any:
    return call(run, args, kwargs)


def original_class(module: nn.Module) -> type:
    """Return the class that a module was built with, not a subclass from interceptions or `fully_shard`."""
    kind = type(module)
    while _CALLS in vars(kind) or _is_of_sharding(kind):
        kind = kind.__bases__[-1]
    return kind


def is_intercepted(module: nn.Module) -> bool:
    """Return whether a function intercepts the calls of a module."""
    return bool(getattr(type(module), _CALLS, ()))


def without_wrappers(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of `torch.compile` and activation checkpointing."""
    for name in ("_orig_mod", "_checkpoint_wrapped_module"):
        module = getattr(module, name, module)
    return module


def _is_of_sharding(kind: type) -> bool:
    """Return whether `fully_shard` or `replicate` created a class from one of their own and the module's."""
    return len(kind.__bases__) == 2 and kind.__bases__[0].__module__.startswith("torch.distributed.")
