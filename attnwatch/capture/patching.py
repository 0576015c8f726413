"""Replacement of functions of other libraries while at least one capture needs it."""

import contextlib
import copy
import functools
import inspect
import pkgutil
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

# Patches belong to the process, and so do the counts of their users.
_lock = threading.RLock()
_in_use: dict[Hashable, tuple[int, Callable[[], None]]] = {}
# Replacements that were to be put back while a later one was in their place, with what they replaced.
_outdated: dict[int, tuple[Any, Any]] = {}
# Replacements that are not put back yet.
_live: dict[int, Any] = {}
_MISSING = object()


@contextlib.contextmanager
def shared_patch(owner: Hashable, apply: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Apply a patch once while the context is open for `owner` anywhere in the process.

    Therefore, captures of several models can be closed in any order.

    Args:
        owner: key of the patch.
        apply: function that applies the patch and returns a function to undo it.
    """
    with _lock:
        users, undo = _in_use.get(owner) or (0, apply())
        _in_use[owner] = (users + 1, undo)
    try:
        yield
    finally:
        with _lock:
            users, undo = _in_use.pop(owner)
            if users > 1:
                _in_use[owner] = (users - 1, undo)
            else:
                undo()


def replace(namespace: dict[str, Any], name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace `namespace[name]` by `wrap(original)`.

    Returns:
        Function that restores the original, in any order with other replacements, unless other code has replaced it
        since.
    """
    return _replace(lambda: namespace.get(name, _MISSING), partial(namespace.__setitem__, name), wrap, namespace[name])


def replace_method(kind: type, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace a method of a class, which may be inherited; see `replace`."""

    def write(method: Any) -> None:
        delattr(kind, name) if method is _MISSING else setattr(kind, name, method)

    return _replace(lambda: vars(kind).get(name, _MISSING), write, wrap, inspect.getattr_static(kind, name))


def _replace(
    read: Callable[[], Any], write: Callable[[Any], None], wrap: Callable[[Any], Any], original: Any
) -> Callable[[], None]:
    with _lock:
        held, replacement = read(), wrap(original)
        write(replacement)
        _live[id(replacement)] = replacement

    def put_back() -> None:
        with _lock:
            del _live[id(replacement)]
            if read() is replacement:
                value = held
                while id(value) in _outdated:
                    _, value = _outdated.pop(id(value))
                write(value)
            elif id(read()) in _live:  # the later replacement will put back what this one has replaced
                _outdated[id(replacement)] = (replacement, held)

    return put_back


class StandIn:
    """Stand-in for a function. Its copies and pickles are the function itself.

    Args:
        function: function that it replaces.
        call: function that is called instead.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], call: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __copy__(self) -> Any:
        return self.__wrapped__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        # A function is pickled by its name, under which there may be a stand-in now.
        function = inspect.unwrap(self)
        module, name = (getattr(function, attribute, None) for attribute in ("__module__", "__qualname__"))
        found = getattr(sys.modules.get(module or ""), name or "", None)
        if found is function or (isinstance(found, StandIn) and inspect.unwrap(found) is function):
            return pkgutil.resolve_name, (f"{module}:{name}",)
        return copy.copy, (self.__wrapped__,)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)
