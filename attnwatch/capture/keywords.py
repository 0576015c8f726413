"""Which keyword arguments can have an effect in a function: those that it names."""

import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# How far calls of helper functions are followed.
_CALL_DEPTH = 3


def asked_when_traced(function: Callable) -> Callable:
    """Have `torch.compile` call a function when it traces and take the result for constant.

    As `torch.compiler.assume_constant_result`, which takes a second to import the compiler.
    """
    function._dynamo_marked_constant = True
    return function


@asked_when_traced
def ignores(function: Callable, name: str) -> bool:
    """Whether a function that is given a keyword argument `name` does not look at it.

    It does not where it falls to a `**kwargs` that the code never reads, or, in the functions of transformers, is read
    for other names only. In other functions that read their `**kwargs` nobody knows what becomes of it.
    """
    function = _function_of(function)
    if function is None or name in _parameters(function):
        return False
    return not _reads_keywords(function) or (is_of_transformers(function) and name not in _names_in(function))


def module_ignores(module: nn.Module, name: str) -> bool:
    """The same of a module's forward with all modules in it, but for attention functions that are looked up."""
    return all(_forward_ignores(type(part), name) for part in module.modules())


def is_of_transformers(thing: Any) -> bool:
    """Whether a function or class is from transformers, or from the code of a model on its hub."""
    return (getattr(thing, "__module__", None) or "").split(".")[0] in ("transformers", "transformers_modules")


def _forward_ignores(kind: type, name: str) -> bool:
    function = _function_of(kind.forward)
    if function is None or not _takes_keywords(function):
        return name not in (() if function is None else _parameters(function))
    return all(name not in (*_parameters(each), *_strings_in(each.__code__)) for each in _reachable(function, kind))


def _names_in(function: FunctionType) -> set[str]:
    """By which it, and the functions that it hands its keywords to, may look one up."""
    return {name for each in _reachable(function) for name in (*_parameters(each), *_strings_in(each.__code__))}


def _function_of(called: Any) -> FunctionType | None:
    """Under partial arguments and wrappers; None where it is not written in Python."""
    while isinstance(called, functools.partial):
        called = called.func
    called = inspect.unwrap(called)
    if inspect.ismethod(called):
        called = called.__func__
    if not isinstance(called, FunctionType):
        called = getattr(type(called), "__call__", None)  # noqa: B004, it is read and not only asked for
    return called if isinstance(called, FunctionType) else None


def _parameters(function: FunctionType) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _takes_keywords(function: FunctionType) -> bool:
    return bool(function.__code__.co_flags & inspect.CO_VARKEYWORDS)


def _reads_keywords(function: FunctionType) -> bool:
    if not _takes_keywords(function):
        return False
    code = function.__code__
    has_varargs = bool(code.co_flags & inspect.CO_VARARGS)
    keywords = code.co_varnames[code.co_argcount + code.co_kwonlyargcount + has_varargs]
    return any(_mentions(instruction.argval, keywords) for instruction in dis.get_instructions(code))


def _mentions(argument: Any, name: str) -> bool:
    return argument == name or (isinstance(argument, tuple) and name in argument)


def _strings_in(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _strings_in(constant)
        yield from (each for each in _flat(constant) if isinstance(each, str))


def _flat(constant: Any) -> Iterable[Any]:
    return constant if isinstance(constant, tuple | frozenset) else (constant,)


def _reachable(function: FunctionType, kind: type | None = None) -> Iterator[FunctionType]:
    """The function, and those that take keywords and are named in its code: globals, and methods of the class."""
    pending, seen = [(function, 0)], set()
    while pending:
        function, depth = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        yield function
        if depth < _CALL_DEPTH:
            pending += [(called, depth + 1) for called in _called(function, kind) if _takes_keywords(called)]


def _called(function: FunctionType, kind: type | None) -> Iterator[FunctionType]:
    names = set(_global_names(function.__code__))
    # Which base `super()` means is known only when it runs.
    classes = () if kind is None else kind.__mro__ if "super" in names else (kind,)
    for name in names:
        for found in (function.__globals__.get(name), *(inspect.getattr_static(each, name, None) for each in classes)):
            found = inspect.unwrap(found) if callable(found) else found
            if isinstance(found, FunctionType):
                yield found


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
