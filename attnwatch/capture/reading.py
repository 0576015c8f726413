"""The functions that a module's forward reaches, read from its code and its values before any call."""

import functools
import inspect
import itertools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

SDPA = torch.nn.functional.scaled_dot_product_attention

# How far calls of helper functions are followed from a module's forward.
_CALL_DEPTH = 3
# How many entries of a container are looked at: a table of attention functions is short.
_MOST_ENTRIES = 200
# How many functions of a module are read: those that are near come first.
_MOST_FUNCTIONS = 100
# Packages that keep no attention function of the user's.
_NOT_FOLLOWED = ("builtins", "torch", "numpy", "logging", "re", "types", "typing")
# What holds no function that a forward calls.
_PLAIN = (str, bytes, int, float, complex, type(None), torch.Tensor, torch.dtype, torch.device, nn.Module)


class Reading(NamedTuple):
    """What the code of a module's forward uses.

    Attributes:
        names: of attributes and globals, in its functions and those that they call.
        bindings: (namespace, name) pairs through which it calls scaled_dot_product_attention directly.
    """

    names: frozenset[str]
    bindings: tuple[tuple[dict, str], ...]


def read_class(module_class: type) -> Reading:
    """What `forward`, the methods and the helper functions that it calls use."""
    names: set[str] = set()
    bindings: list[tuple[dict, str]] = []
    for function in _reachable(module_class):
        used = set(names_in(function.__code__))
        names |= used
        namespace = function.__globals__
        bindings += [(namespace, name) for name in sorted(used) if is_sdpa(namespace.get(name))]
    return Reading(frozenset(names), tuple(bindings))


def names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def is_sdpa(value: object) -> bool:
    """Also where a capture has wrapped it already."""
    return value is SDPA or getattr(value, "__wrapped__", None) is SDPA


def _reachable(module_class: type) -> Iterator[types.FunctionType]:
    """`forward`, the methods and the helper functions that it calls, directly or through each other."""
    pending: list[tuple[Callable, int]] = [(module_class.forward, 0)]
    seen = set()
    while pending:
        function, depth = pending.pop()
        function = inspect.unwrap(function)
        if not isinstance(function, types.FunctionType) or function in seen or _belongs_to_torch(function):
            continue
        seen.add(function)
        yield function
        if depth == _CALL_DEPTH:
            continue
        names = set(names_in(function.__code__))
        # Which base `super()` means is known only when it runs.
        classes = module_class.__mro__ if "super" in names else (module_class,)
        for name in names:
            methods = [inspect.getattr_static(base, name, None) for base in classes]
            functions = [getattr(method, "__func__", method) for method in methods]
            for called in (*functions, function.__globals__.get(name)):
                if isinstance(called, types.FunctionType):
                    pending.append((called, depth + 1))


def _belongs_to_torch(function: types.FunctionType) -> bool:
    return function.__module__ is not None and function.__module__.split(".")[0] == "torch"


class Hidden(NamedTuple):
    """How a module reaches scaled_dot_product_attention through values that it holds.

    Attributes:
        names: used in all code that was reached.
        bindings: as in `Reading`.
        by_name: some of that code looks the function up where it is patched.
        by_value: a reference to the function itself is held (a partial, an entry of a dict, a default argument, …).
    """

    names: frozenset[str]
    bindings: tuple[tuple[dict, str], ...]
    by_name: bool
    by_value: bool


def read_values(module: nn.Module) -> Hidden:
    """What a module's forward reaches through its attributes, closures, default arguments and tables of functions."""
    return _Values(module).read()


class _Step(NamedTuple):
    """A value that reached code may call.

    Attributes:
        value: itself.
        owner: the object or class whose function it is, besides the module; None where there is none.
        depth: how many calls lie between the module's forward and this.
    """

    value: Any
    owner: Any
    depth: int


class _Values:
    """Follows every value that reached code may call, nearest first. Reaches too much rather than too little."""

    def __init__(self, module: nn.Module):
        self._module = module
        self._names: set[str] = set()
        self._bindings: list[tuple[dict, str]] = []
        self._by_name = self._by_value = False
        self._num_functions = 0
        self._seen: dict[int, Any] = {}  # kept alive, so that no id comes twice
        self._pending = deque([_Step(inspect.getattr_static(module, "forward", None), None, 0)])

    def read(self) -> Hidden:
        while self._pending and self._num_functions < _MOST_FUNCTIONS:
            self._follow(self._pending.popleft())
        return Hidden(frozenset(self._names), tuple(self._bindings), self._by_name, self._by_value)

    def _follow(self, step: _Step) -> None:
        value, _, depth = step
        if depth > _CALL_DEPTH or isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if is_sdpa(value):
            self._by_value = True
        elif isinstance(value, types.FunctionType):
            self._follow_function(step._replace(value=inspect.unwrap(value)))
        else:
            self._pending += [_Step(part, owner, depth) for part, owner in self._parts(*step)]

    def _parts(self, value: Any, owner: Any, depth: int) -> list[tuple[Any, Any]]:
        """What is called when this value is, each with its owner."""
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

    def _follow_function(self, step: _Step) -> None:
        function, owner, depth = step
        if not isinstance(function, types.FunctionType) or _belongs_to_torch(function):
            return
        self._num_functions += 1
        names, namespace = set(names_in(function.__code__)), function.__globals__
        self._names |= names
        self._by_name = self._by_name or SDPA.__name__ in names or SDPA.__name__ in _texts_in(function.__code__)
        self._bindings += [(namespace, name) for name in sorted(names) if is_sdpa(namespace.get(name))]
        known = [value for name in names if not is_sdpa(value := namespace.get(name))]
        held = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *_closure(function))
        reached = [(value, None) for value in (*known, *held)]
        for holder in (self._module, owner, *filter(_has_functions, (*known, *held))):
            reached += [(value, holder) for value in _named_on(holder, names)]
        self._pending += [_Step(value, holder, depth + 1) for value, holder in reached]


def _held(value: Any) -> list[tuple[Any, Any]]:
    """Functions and tables of functions that an object holds."""
    if isinstance(value, type | types.ModuleType | nn.Module):
        return []
    parts = itertools.islice(getattr(value, "__dict__", {}).values(), _MOST_ENTRIES)
    return [(part, value) for part in parts if callable(part) or isinstance(part, Mapping | list | tuple)]


def _has_functions(value: Any) -> bool:
    """A module, a class or an object of somebody whose functions are called by name."""
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0] not in (*_NOT_FOLLOWED, *sys.builtin_module_names)
    if isinstance(value, type):
        return not issubclass(value, nn.Module) and not _is_not_followed(value)
    return not isinstance(value, _PLAIN) and not _is_not_followed(type(value))


def _named_on(holder: Any, names: Iterable[str]) -> Iterator[Any]:
    """What these names mean on an object, a class or a module, read without running any code of it."""
    for name in names if holder is not None else ():
        value = inspect.getattr_static(holder, name, None)
        if isinstance(value, types.MemberDescriptorType) and not isinstance(holder, type):  # of __slots__
            value = getattr(holder, name, None)
        if value is not None:
            yield value


def _closure(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _texts_in(code: types.CodeType) -> Iterator[str]:
    """Constants: `getattr(F, "scaled_dot_product_attention")`."""
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _texts_in(constant)


def _is_not_followed(kind: type) -> bool:
    return (kind.__module__ or "").split(".")[0] in _NOT_FOLLOWED
