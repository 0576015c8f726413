"""Keys that compare objects by identity, and tensors also by version."""

from typing import Any

from torch import Tensor


class Identity:
    """Key that is equal for the same object, and for a tensor only until it is written to.

    The key keeps the object alive. Otherwise, another object could get its memory, and therefore its `id`.
    """

    def __init__(self, thing: Any):
        self._thing = thing
        has_version = isinstance(thing, Tensor) and not thing.is_inference()
        self._version = thing._version if has_version else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._thing is other._thing and self._version == other._version

    def __hash__(self) -> int:
        return hash((id(self._thing), self._version))
