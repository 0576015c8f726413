"""Helpers for code traced by `torch.compile`, and a check whether a process compiles at all."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ORDER = torch.zeros(())
"""Tensor that custom operators declare as mutated, which keeps them in the graph and in order."""
NOT_IN_CUDA_GRAPHS = (torch.Tag.cudagraph_unsafe,)
"""Tags of custom operators that read state at run time: compiled models are split around them."""


def asked_when_traced(function: FunctionT) -> FunctionT:
    """Make `torch.compile` call a function while tracing and treat the result as a constant.

    Same as `torch.compiler.assume_constant_result`, which takes a second to import the compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def is_compiled(model: nn.Module) -> bool:
    """Return whether a module in `model` was compiled. A function mode for one step would recompile it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )


def compiles_anything() -> bool:
    """Return whether `torch.compile` was called in this process, where adding or removing hooks recompiles models."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(compiler, "cached_backends", {})
    return any(backend is not None for backend in backends.values())  # None marks functions that were never compiled
