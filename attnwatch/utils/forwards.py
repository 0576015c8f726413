"""Code and parameters of forwards, which may not be written in Python."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import nn

_MOST_WRAPPERS = 100


def function_of(called: Any) -> FunctionType | None:
    """Return the Python function inside partials, wrappers and methods; None if there is none.

    Example:
        >>> import functools
        >>> function_of(functools.partial(function_of, print)).__name__
        'function_of'
        >>> function_of(print) is None
        True
    """
    called = _innermost(called)
    if not isinstance(called, FunctionType):
        called = _innermost(getattr(type(called), "__call__", None))  # noqa: B004, the attribute itself is needed
    return called if isinstance(called, FunctionType) else None


def forward_function(kind: type[nn.Module]) -> FunctionType | None:
    """Return the function of a class's forward; None if it is not in Python, as in a `torch.jit.ScriptModule`.

    The forward is not looked up on the class, because that raises an error for a ScriptModule.
    """
    return function_of(inspect.getattr_static(kind, "forward", None))


def is_redirected(module: nn.Module) -> bool:
    """Return whether a call of a module will run another of its methods, such as `training_step`.

    Lightning replaces the forward of the module for one call, so that the call passes through a wrapper like
    `DistributedDataParallel`. The function that it puts there looks up the method by its name.
    """
    forward = vars(module).get("forward")
    return isinstance(forward, FunctionType) and "method_name" in forward.__code__.co_freevars


def parameters_of(called: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function or method by name; none if they are undeclared, as in some C functions.

    Example:
        >>> list(parameters_of(lambda tokens, mask=None: tokens)), list(parameters_of(dict.update))
        (['tokens', 'mask'], [])
    """
    try:
        return inspect.signature(called).parameters
    except (TypeError, ValueError):
        return {}


def _innermost(called: Any) -> Any:
    """Return the innermost callable of partials, methods and decorated functions."""
    for _ in range(_MOST_WRAPPERS):  # wrappers may form a cycle
        inner = _inner(called)
        if inner is None:
            break
        called = inner
    return called


def _inner(called: Any) -> Any:
    if isinstance(called, functools.partial | functools.partialmethod):
        return called.func
    if isinstance(called, staticmethod | classmethod | MethodType):
        return called.__func__
    return getattr(called, "__wrapped__", None)
