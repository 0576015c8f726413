"""Helpers for code that `torch.compile` traces, and a test whether a process compiles at all."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ORDER = torch.zeros(())
"""Tensor that custom operators claim to mutate, which keeps them in the graph and in their order."""
NOT_IN_CUDA_GRAPHS = (torch.Tag.cudagraph_unsafe,)
"""Tags of custom operators that read state when they run: compiled models are split around them."""


def asked_when_traced(function: FunctionT) -> FunctionT:
    """Let `torch.compile` call a function while it traces and treat the result as a constant.

    This is `torch.compiler.assume_constant_result`, which takes a second to import the compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def is_compiled(model: nn.Module) -> bool:
    """Return whether a module in `model` was compiled. A function mode for one step would compile it once more."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )


def compiles_anything() -> bool:
    """Return whether `torch.compile` was called in this process. There, hooks that come or go compile models again."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(compiler, "cached_backends", {})
    return any(backend is not None for backend in backends.values())  # None belongs to functions never compiled
