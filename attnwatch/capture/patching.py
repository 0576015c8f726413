"""Functions of other libraries that are replaced while at least one capture needs it."""

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

# What is replaced belongs to the process, and so does the number of its users.
_lock = threading.RLock()
_in_use: dict[Hashable, tuple[int, Callable[[], None]]] = {}


@contextlib.contextmanager
def shared_patch(owner: Hashable, apply: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Have a patch in effect, once, while the context is open anywhere in the process for `owner`.

    Captures of several models can therefore be closed in any order.

    Args:
        owner: key of the patch.
        apply: applies the patch and returns a function that undoes it.
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
    """Put `wrap(original)` in the place of `namespace[name]`.

    Returns:
        Function that puts the original back, unless somebody else has replaced it since then.
    """
    original = namespace[name]
    replacement = namespace[name] = wrap(original)

    def put_back() -> None:
        if namespace[name] is replacement:
            namespace[name] = original

    return put_back


class StandIn:
    """Object in the place of a function. Its copies and pickles are the function itself.

    Args:
        function: function in whose place it stands.
        call: called instead.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], call: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return copy.copy, (self.__wrapped__,)  # which returns functions as they are

    def __repr__(self) -> str:
        return repr(self.__wrapped__)
