"""Tensor subclasses with an attention of their own, which know the function by comparing it with torch's."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.capture.reading import SDPA

# Importing it takes a second, and who uses it has done so.
_BIASES = "torch.nn.attention.bias"


def call_of_subclasses(call: Callable[[], Tensor], args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """`call()`, which calls the function with these arguments, so that their classes recognise it."""
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    biases = [type(each) for each in tensors if type(each).__module__ == _BIASES]
    if biases:  # they are handed the function that stands where they look
        return biases[0].__torch_function__(F.scaled_dot_product_attention, tuple(biases), args, kwargs)
    if all(type(each) in (Tensor, nn.Parameter) for each in tensors):
        return call()
    with _torch_as_it_was:
        return call()


def patch_biases() -> Callable[[], None]:
    """Let torch's causal biases recognise the function also where they get it by a reference that is not patched.

    Returns:
        Puts them back.
    """
    kind = getattr(sys.modules.get(_BIASES), "CausalBias", None)
    if kind is None:
        return lambda: None
    original = vars(kind)["__torch_function__"]

    def __torch_function__(cls, func, types, args=(), kwargs=None):
        func = F.scaled_dot_product_attention if func is SDPA else func
        return original.__func__(cls, func, types, args, kwargs)

    kind.__torch_function__ = patched = classmethod(__torch_function__)

    def put_back() -> None:
        if vars(kind)["__torch_function__"] is patched:
            kind.__torch_function__ = original

    return put_back


class _TorchAsItWas:
    """Torch's own function in its place, for all threads, while at least one call needs it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._users = 0
        self._replaced: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._replaced = F.scaled_dot_product_attention
                F.scaled_dot_product_attention = SDPA
            self._users += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                F.scaled_dot_product_attention, self._replaced = self._replaced, None


_torch_as_it_was = _TorchAsItWas()
