"""Keyword arguments that can affect a function, judged by the names in its code."""

import dis
import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from attnwatch.capture.code_names import reachable, texts_in
from attnwatch.capture.compilation import asked_when_traced
from attnwatch.utils.forwards import forward_function, function_of


@asked_when_traced
def ignores(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function ignores a keyword argument `name`.

    It does if the argument falls into a `**kwargs` that the code never reads or, in functions of transformers, reads
    only for other names. In other functions that read their `**kwargs`, the effect is unknown.
    """
    inner = function_of(function)
    if inner is None or name in _parameters(inner):
        return False
    return not _reads_keywords(inner.__code__) or (is_of_transformers(inner) and not _is_named_in(inner, None, name))


def module_ignores(module: nn.Module, name: str) -> bool:
    """Return the same for a module's forward and all inner modules, except attention functions that it looks up."""
    return all(_forward_ignores(type(part), name) for part in module.modules())


def is_of_transformers(thing: Any) -> bool:
    """Return whether a function or class is from transformers, or from a model's code on the Hub."""
    return (getattr(thing, "__module__", None) or "").split(".")[0] in ("transformers", "transformers_modules")


def _forward_ignores(kind: type[nn.Module], name: str) -> bool:
    function = forward_function(kind)
    if function is None or not _takes_keywords(function):
        return function is None or name not in _parameters(function)
    return not _is_named_in(function, kind, name)


def _is_named_in(function: FunctionType, owner: type | None, name: str) -> bool:
    """Return whether the function, or one that it passes its keywords to, may look up this name."""
    functions = reachable(function, owner, is_followed=_takes_keywords)
    return any(name in (*_parameters(each), *texts_in(each.__code__)) for each in functions)


def _parameters(function: FunctionType) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _takes_keywords(function: FunctionType) -> bool:
    return bool(function.__code__.co_flags & inspect.CO_VARKEYWORDS)


@functools.lru_cache(maxsize=256)  # disassembling takes half a millisecond, in each call of an attention function
def _reads_keywords(code: CodeType) -> bool:
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return False
    has_varargs = bool(code.co_flags & inspect.CO_VARARGS)
    keywords = code.co_varnames[code.co_argcount + code.co_kwonlyargcount + has_varargs]
    return any(_mentions(instruction.argval, keywords) for instruction in dis.get_instructions(code))


def _mentions(argument: Any, name: str) -> bool:
    return argument == name or (isinstance(argument, tuple) and name in argument)
