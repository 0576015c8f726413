"""Objects that custom operators need at run time.

A custom operator takes only tensors, numbers and strings, and a compiled graph outlives the call that traced it.
Therefore, a number identifies such an object in the process. It is a constant of the graph and is never reused.
"""

import itertools
import weakref
from typing import Generic, TypeVar

ObjectT = TypeVar("ObjectT")


class ObjectTable(Generic[ObjectT]):
    """Table of objects by number. It does not keep them alive."""

    def __init__(self) -> None:
        self._objects: weakref.WeakValueDictionary[int, ObjectT] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()

    def add(self, thing: ObjectT) -> int:
        """Add an object and return the number by which operators find it."""
        number = next(self._numbers)
        self._objects[number] = thing
        return number

    def __getitem__(self, number: int) -> ObjectT:
        return self._objects[number]
