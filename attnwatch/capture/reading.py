"""Which functions a module's forward reaches, and through which references, read from code and values before any call."""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

SDPA = torch.nn.functional.scaled_dot_product_attention

# How far calls of helper functions are followed from a module's forward.
_CALL_DEPTH = 3
# How many entries of a container are looked at: a table of attention functions is short.
_MOST_ENTRIES = 200
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


class _Values:
    """Follows every value that reached code may call. Reaches too much rather than too little."""

    def __init__(self, module: nn.Module):
        self._owners: list[Any] = [module]
        self._names: set[str] = set()
        self._bindings: list[tuple[dict, str]] = []
        self._by_name = self._by_value = False
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # so that no id comes twice
        self._pending: list[tuple[Any, int]] = [(inspect.getattr_static(module, "forward", None), 0)]

    def read(self) -> Hidden:
        while self._pending:
            self._follow(*self._pending.pop(0))
        return Hidden(frozenset(self._names), tuple(self._bindings), self._by_name, self._by_value)

    def _follow(self, value: Any, depth: int) -> None:
        if depth > _CALL_DEPTH + 1 or isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        if is_sdpa(value):
            self._by_value = True
        elif isinstance(value, types.FunctionType):
            self._follow_function(inspect.unwrap(value), depth)
        else:
            self._pending += [(part, depth) for part in self._parts(value)]

    def _parts(self, value: Any) -> Iterable[Any]:
        if isinstance(value, staticmethod | classmethod):
            return (value.__func__,)
        if isinstance(value, property):
            return (value.fget,)
        if isinstance(value, types.MethodType):
            return self._object(value.__self__, value.__func__)
        if isinstance(value, functools.partial | functools.partialmethod):
            return (value.func, *value.args, *value.keywords.values())
        if isinstance(value, Mapping):
            return list(value.values())[:_MOST_ENTRIES]
        if isinstance(value, list | tuple | set | frozenset):
            return list(value)[:_MOST_ENTRIES]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return self._namespace(value)
        if _is_not_followed(type(value)):
            return ()
        return self._object(value, inspect.getattr_static(type(value), "__call__", None))

    def _object(self, value: Any, *functions: Any) -> list[Any]:
        """An object with state: its functions, what used names mean on it, and what a table of its own holds."""
        if not isinstance(value, _PLAIN):
            self._owners.append(value)
        held = list(getattr(value, "__dict__", {}).values())[:_MOST_ENTRIES] if not isinstance(value, type) else []
        tables = [each for each in held if callable(each) or isinstance(each, Mapping | list | tuple)]
        return [*functions, *tables, *self._named_on(value, self._names)]

    def _namespace(self, module: types.ModuleType) -> list[Any]:
        if module.__name__.split(".")[0] in _NOT_FOLLOWED or module.__name__ in sys.builtin_module_names:
            return []
        self._owners.append(module)
        return self._named_on(module, self._names)

    def _class(self, value: type) -> list[Any]:
        if issubclass(value, torch.autograd.Function):
            return [inspect.getattr_static(value, "forward", None)]
        if issubclass(value, nn.Module) or _is_not_followed(value):
            return []
        self._owners.append(value)
        return self._named_on(value, self._names)

    def _follow_function(self, function: Any, depth: int) -> None:
        if not isinstance(function, types.FunctionType) or _belongs_to_torch(function):
            return
        names, namespace = set(names_in(function.__code__)), function.__globals__
        new = names - self._names
        self._names |= names
        self._by_name = self._by_name or SDPA.__name__ in names or SDPA.__name__ in _texts_in(function.__code__)
        for name in names:
            if is_sdpa(namespace.get(name)):
                self._bindings.append((namespace, name))
            else:
                self._pending.append((namespace.get(name), depth + 1))
        held = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *_closure(function))
        self._pending += [(value, depth + 1) for value in held]
        for owner in self._owners:
            self._pending += [(value, depth + 1) for value in self._named_on(owner, new)]

    @staticmethod
    def _named_on(owner: Any, names: Iterable[str]) -> list[Any]:
        """What these names mean on an object or a class, read without running any code of it."""
        found = []
        for name in names:
            value = inspect.getattr_static(owner, name, None)
            if isinstance(value, types.MemberDescriptorType):  # of __slots__
                value = getattr(owner, name, None)
            found.append(value)
        return found


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
