"""Objects that custom operators need when they run.

A custom operator takes tensors, numbers and strings only, and a compiled graph outlives the call that traced it. So the
process knows such an object by a number, which is a constant of the graph and is never given to another object.
"""

import itertools
import weakref
from typing import Generic, TypeVar

ObjectT = TypeVar("ObjectT")


class ObjectTable(Generic[ObjectT]):
    """Objects by number. The table keeps none of them alive."""

    def __init__(self) -> None:
        self._objects: weakref.WeakValueDictionary[int, ObjectT] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()

    def add(self, thing: ObjectT) -> int:
        """Return the number by which operators find an object from now on."""
        number = next(self._numbers)
        self._objects[number] = thing
        return number

    def __getitem__(self, number: int) -> ObjectT:
        return self._objects[number]
