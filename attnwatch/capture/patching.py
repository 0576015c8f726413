"""Replacement of functions of other libraries while at least one capture needs it."""

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

# Patches belong to the process, and so do the counts of their users.
_lock = threading.RLock()
_in_use: dict[Hashable, tuple[int, Callable[[], None]]] = {}


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
        Function that restores the original, unless other code has replaced it since.
    """
    original = namespace[name]
    replacement = namespace[name] = wrap(original)

    def put_back() -> None:
        if namespace[name] is replacement:
            namespace[name] = original

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

    def __reduce__(self) -> tuple[Any, ...]:
        return copy.copy, (self.__wrapped__,)  # copying a function returns it unchanged

    def __repr__(self) -> str:
        return repr(self.__wrapped__)
