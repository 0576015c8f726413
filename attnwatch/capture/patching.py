"""Functions of other libraries that are replaced while at least one capture needs it."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

_in_use: dict[Hashable, tuple[int, Callable[[], None]]] = {}


@contextlib.contextmanager
def shared_patch(owner: Hashable, apply: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """While it is open anywhere for `owner`, `apply()` is in effect, once; what it returned undoes it at the end.

    Captures of several models may so be closed in any order.
    """
    users, undo = _in_use.get(owner) or (0, apply())
    _in_use[owner] = (users + 1, undo)
    try:
        yield
    finally:
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
