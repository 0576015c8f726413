"""Names used by a module's forward and the code that it reaches, read without running the code."""

import functools
import inspect
import itertools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from attnwatch.utils.forwards import forward_function

# Maximum number of calls between a module's forward and the code that is read.
_CALL_DEPTH = 3
# Maximum number of entries read from a container: tables of attention functions are short.
_MOST_ENTRIES = 200
# Maximum number of functions read for one module, nearest first.
_MOST_FUNCTIONS = 100
# Packages that contain no attention functions of users.
_NOT_FOLLOWED = ("builtins", "torch", "numpy", "logging", "re", "types", "typing")
# Types of values that hold no functions called by a forward.
_PLAIN = (str, bytes, int, float, complex, type(None), torch.Tensor, torch.dtype, torch.device, nn.Module)


@dataclass(frozen=True, eq=False)
class CodeNames:
    """Names and functions used by the code of a module's forward.

    Attributes:
        functions: Python functions that were reached, including the forward.
        texts: string constants in these functions, as in `getattr(F, "scaled_dot_product_attention")`.
        held: attention functions held in attributes, closures, default arguments and tables of functions.
    """

    functions: tuple[FunctionType, ...] = ()
    texts: frozenset[str] = frozenset()
    held: tuple[Any, ...] = ()

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Names of attributes and globals in the code."""
        return frozenset(name for function in self.functions for name in names_in(function.__code__))

    @functools.cached_property
    def _called(self) -> list[tuple[dict[str, Any], str, Any]]:
        """Namespace, name and value of all that the code may call by name: globals and attributes of global modules."""
        found = []
        for function in self.functions:
            names, own = set(names_in(function.__code__)), function.__globals__
            modules = [own[name] for name in names if isinstance(own.get(name), types.ModuleType)]
            for namespace in (own, *(module.__dict__ for module in modules)):
                found += [(namespace, name, namespace[name]) for name in names & namespace.keys()]
        return [(namespace, name, value) for namespace, name, value in found if callable(value)]

    def bindings(self, function: object) -> list[tuple[dict[str, Any], str]]:
        """Return the (namespace, name) pairs by which the code calls `function`."""
        return [(namespace, name) for namespace, name, value in self._called if is_reference(value, function)]

    def holds(self, function: object) -> bool:
        """Return whether the code holds a reference to `function` itself, which can't be patched."""
        return any(is_reference(value, function) for value in self.held)

    def refers_to(self, function: object) -> bool:
        """Return whether the code calls `function` by its own name for it, or holds it."""
        return bool(self.bindings(function)) or self.holds(function)

    def __or__(self, other: "CodeNames") -> "CodeNames":
        functions = tuple(dict.fromkeys((*self.functions, *other.functions)))
        return CodeNames(functions, self.texts | other.texts, (*self.held, *other.held))


def is_reference(value: object, function: object) -> bool:
    """Return whether `value` is `function`, or wraps it as a capture's patch does."""
    return function is not None and (value is function or getattr(value, "__wrapped__", None) is function)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names of attributes and globals in code, including nested functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def texts_in(code: CodeType) -> Iterator[str]:
    """Yield the string constants in code, including those in tuples and nested functions."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from texts_in(constant)
        else:
            entries = constant if isinstance(constant, tuple | frozenset) else (constant,)
            yield from (entry for entry in entries if isinstance(entry, str))


def reachable(
    function: Callable[..., Any], owner: type | None, *, is_followed: Callable[[FunctionType], bool]
) -> Iterator[FunctionType]:
    """Yield a function and the functions that it calls by name (globals and methods of `owner`), nearest first."""
    pending, seen = deque([(inspect.unwrap(function), 0)]), set()
    while pending:
        function, depth = pending.popleft()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        yield function
        if depth < _CALL_DEPTH:
            called = map(inspect.unwrap, _called(function, owner))
            pending += [(each, depth + 1) for each in called if isinstance(each, FunctionType) and is_followed(each)]


def _called(function: FunctionType, owner: type | None) -> Iterator[Any]:
    names = dict.fromkeys(names_in(function.__code__))
    # Only at run time is it known which base class `super()` means.
    classes = () if owner is None else owner.__mro__ if "super" in names else (owner,)
    for name in names:
        for value in (function.__globals__.get(name), *(inspect.getattr_static(each, name, None) for each in classes)):
            value = getattr(value, "__func__", value) if isinstance(value, staticmethod | classmethod) else value
            if isinstance(value, FunctionType) or "__wrapped__" in getattr(value, "__dict__", ()):
                yield value


def is_of_torch(module: nn.Module) -> bool:
    """Return whether the class of a module is from `torch.nn`, whose code is known."""
    return type(module).__module__.startswith("torch.nn.")


def _belongs_to_torch(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] == "torch"


def read_class(module_class: type[nn.Module]) -> CodeNames:
    """Return the names used by the `forward` of a class, its methods and their helper functions."""
    forward = forward_function(module_class)
    if forward is None or _belongs_to_torch(forward):
        return CodeNames()
    return CodeNames(tuple(reachable(forward, module_class, is_followed=lambda each: not _belongs_to_torch(each))))


def read_values(module: nn.Module, attention_functions: Iterable[object]) -> CodeNames:
    """Return the names that a forward reaches, also through attributes, closures, defaults and tables of functions.

    Args:
        attention_functions: functions to look for.
    """
    return _Values(module, tuple(attention_functions)).read()


class _Step(NamedTuple):
    """A value that reached code may call, its owner other than the module, and the number of calls before it."""

    value: Any
    owner: Any
    depth: int


class _Values:
    """Traversal of all values that reached code may call, nearest first. It errs on the side of reaching too much."""

    def __init__(self, module: nn.Module, attention_functions: tuple[object, ...]):
        self._module, self._attention_functions = module, attention_functions
        self._functions: list[FunctionType] = []
        self._held: list[Any] = []
        self._seen: dict[int, Any] = {}  # kept alive, so that ids stay unique
        self._pending = deque([_Step(inspect.getattr_static(module, "forward", None), None, 0)])

    def read(self) -> CodeNames:
        while self._pending and len(self._functions) < _MOST_FUNCTIONS:
            self._follow(self._pending.popleft())
        texts = frozenset(text for function in self._functions for text in texts_in(function.__code__))
        return CodeNames(tuple(self._functions), texts, tuple(self._held))

    def _is_attention(self, value: object) -> bool:
        return any(is_reference(value, function) for function in self._attention_functions)

    def _follow(self, step: _Step) -> None:
        value, _, depth = step
        if depth > _CALL_DEPTH or isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if self._is_attention(value):
            self._held.append(value)
        elif isinstance(value, FunctionType):
            self._follow_function(step._replace(value=inspect.unwrap(value)))
        else:
            self._pending += [_Step(part, owner, depth) for part, owner in _parts(value, step.owner)]

    def _follow_function(self, step: _Step) -> None:
        function, owner, depth = step
        if not isinstance(function, FunctionType) or _belongs_to_torch(function):
            return
        self._functions.append(function)
        names, namespace = dict.fromkeys(names_in(function.__code__)), function.__globals__
        known = [value for name in names if not self._is_attention(value := namespace.get(name))]
        held = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *_closure(function))
        reached = [(value, None) for value in (*known, *held)]
        for holder in (self._module, owner, *filter(_has_functions, (*known, *held))):
            is_patched = isinstance(holder, types.ModuleType)  # by `CodeNames.bindings`
            named = _named_on(holder, names)
            reached += [(value, holder) for value in named if not (is_patched and self._is_attention(value))]
        self._pending += [_Step(value, holder, depth + 1) for value, holder in reached]


def _parts(value: Any, owner: Any) -> list[tuple[Any, Any]]:
    """Return the functions that are called when a value is called, each with its owner."""
    if isinstance(value, staticmethod | classmethod):
        return [(value.__func__, owner)]
    if isinstance(value, property):
        return [(value.fget, owner)]
    if isinstance(value, types.MethodType):
        return [(value.__func__, value.__self__), *_held(value.__self__)]
    if isinstance(value, functools.partial | functools.partialmethod):
        return [(part, owner) for part in (value.func, *value.args, *value.keywords.values())]
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        entries = value.values() if isinstance(value, Mapping) else value
        return [(part, owner) for part in itertools.islice(entries, _MOST_ENTRIES)]
    if isinstance(value, type):
        is_function = issubclass(value, torch.autograd.Function)
        return [(inspect.getattr_static(value, "forward", None), value)] if is_function else []
    if _is_not_followed(type(value)):
        return []
    return [(inspect.getattr_static(type(value), "__call__", None), value), *_held(value)]


def _held(value: Any) -> list[tuple[Any, Any]]:
    """Return the functions and tables of functions that an object holds."""
    if isinstance(value, type | types.ModuleType | nn.Module):
        return []
    parts = itertools.islice(getattr(value, "__dict__", {}).values(), _MOST_ENTRIES)
    return [(part, value) for part in parts if callable(part) or isinstance(part, Mapping | list | tuple)]


def _has_functions(value: Any) -> bool:
    """Return whether a value is a user's module, class or object whose functions are called by name."""
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0] not in (*_NOT_FOLLOWED, *sys.builtin_module_names)
    if isinstance(value, type):
        return not issubclass(value, nn.Module) and not _is_not_followed(value)
    return not isinstance(value, _PLAIN) and not _is_not_followed(type(value))


def _named_on(holder: Any, names: Iterable[str]) -> Iterator[Any]:
    """Yield the values of these names on an object, a class or a module."""
    for name in names if holder is not None else ():
        value = inspect.getattr_static(holder, name, None)
        if isinstance(value, types.MemberDescriptorType) and not isinstance(holder, type):  # of __slots__
            value = getattr(holder, name, None)
        if value is not None:
            yield value


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the cell is still empty
            continue


def _is_not_followed(kind: type) -> bool:
    return (kind.__module__ or "").split(".")[0] in _NOT_FOLLOWED
