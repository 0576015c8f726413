"""Documentation of the callbacks: that of the part they are made of, with an example for their trainer."""

import inspect
from collections.abc import Callable
from typing import TypeVar

Kind = TypeVar("Kind", bound=type)


def documented(example: str) -> Callable[[Kind], Kind]:
    """Make a class decorator that takes the docstring of the first base class and shows `example` after its summary.

    Args:
        example: lines of Python.
    """

    def document(kind: Kind) -> Kind:
        if kind.__bases__[0].__doc__:  # there is none under `python -OO`
            summary, rest = inspect.cleandoc(kind.__bases__[0].__doc__).split("\n\n", 1)
            kind.__doc__ = f"{summary}\n\n```python\n{inspect.cleandoc(example)}\n```\n\n{rest}"
        return kind

    return document
