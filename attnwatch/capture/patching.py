"""Functions of other libraries that are replaced while at least one capture needs it."""

import contextlib
import copy
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

# What is replaced is the process's own, and so is the number of its users.
_lock = threading.RLock()
_in_use: dict[Hashable, tuple[int, Callable[[], None]]] = {}


@contextlib.contextmanager
def shared_patch(owner: Hashable, apply: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """While it is open anywhere for `owner`, `apply()` is in effect, once; what it returned undoes it at the end.

    Captures of several models may so be closed in any order.
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
    """Put `wrap(original)` in the place of `namespace[name]`. Call the result to put the original back.

    Where somebody else has replaced it since then, theirs stays.
    """
    original = namespace[name]
    replacement = namespace[name] = wrap(original)

    def put_back() -> None:
        if namespace[name] is replacement:
            namespace[name] = original

    return put_back


class StandIn:
    """Stands in the place of a function. Its copies and pickles are the function itself.

    Args:
        function: in whose place it is.
        call: what is called instead.
    """

    def __init__(self, function: Callable[..., Any], call: Callable[..., Any]):
        self.__wrapped__ = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self._call = call

    def __call__(self, *args, **kwargs):
        return self._call(*args, **kwargs)

    def __reduce__(self):
        return copy.copy, (self.__wrapped__,)  # which gives functions back as they are

    def __repr__(self) -> str:
        return repr(self.__wrapped__)
