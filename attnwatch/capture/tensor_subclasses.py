"""Tensor subclasses with their own attention, which recognise the function by comparing it with torch's."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.capture.patching import replace, shared_patch

SDPA = F.scaled_dot_product_attention
"""The function itself, never a patch."""

# Importing it takes a second, and its users have already imported it.
_BIASES = "torch.nn.attention.bias"
# Restores torch's own function, for all threads.
_restore_torch = partial(replace, vars(F), "scaled_dot_product_attention", lambda patched: SDPA)


def call_of_subclasses(call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return `call()`, which calls the function with these arguments, so that their classes recognise it."""
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    biases = [type(each) for each in tensors if type(each).__module__ == _BIASES]
    if biases:  # they compare with the function currently in its place
        return biases[0].__torch_function__(F.scaled_dot_product_attention, tuple(biases), args, kwargs)
    if all(type(each) in (Tensor, nn.Parameter) for each in tensors):
        return call()
    with shared_patch("torch's own function", _restore_torch):
        return call()


def patch_biases() -> Callable[[], None]:
    """Make torch's causal biases recognise the function through unpatched references too.

    Returns:
        Function that restores them.
    """
    kind = getattr(sys.modules.get(_BIASES), "CausalBias", None)
    if kind is None:
        return lambda: None
    original = vars(kind)["__torch_function__"]

    def __torch_function__(
        cls: type, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = F.scaled_dot_product_attention if func is SDPA else func
        return original.__func__(cls, func, types, args, kwargs)

    patched: Any = classmethod(__torch_function__)
    kind.__torch_function__ = patched

    def put_back() -> None:
        if vars(kind)["__torch_function__"] is patched:
            kind.__torch_function__ = original

    return put_back
