"""Kind of the forward that a call belongs to; statistics of a step cover only the forwards that are trained on."""

import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor

# Compiled code and custom operators run in autograd functions of these packages, which say nothing about the call.
_MACHINERY = ("torch._functorch", "torch._library", "torch._dynamo")


class ForwardPass(NamedTuple):
    """Kind of the forward of one call. Of a module's calls in one step, only those with the greatest kind count.

    Attributes:
        gradient: 2 if query or key requires a gradient; 1 if autograd is on but neither does, as in a frozen part or
            in a pass with frozen weights; 0 if autograd is off: sampling, a reference model, a teacher, validation.
        is_whole: False while decoding single tokens with a key-value cache.
        is_training: True if the module is in train mode.
    """

    gradient: int
    is_whole: bool
    is_training: bool


def in_backward() -> bool:
    """Return whether autograd is running a backward. A forward inside it is the recomputation of checkpointing."""
    return torch._C._current_graph_task_id() != -1


def gradient_of(sources: Iterable[Tensor]) -> int:
    """Return `ForwardPass.gradient` as far as it follows from the tensors that query and key are computed from."""
    if not torch.is_grad_enabled():
        return 0
    return 2 if any(tensor.requires_grad for tensor in sources) else 1


def or_recorded(gradient: int) -> int:
    """Return `gradient`, or 2 if autograd will rerun this forward in the backward and record it then.

    Reentrant activation checkpointing runs a forward without gradients inside an `autograd.Function`. The edges of
    that function to its predecessors show that it is recorded.
    """
    return 2 if gradient == 2 or any(map(_is_recorded_function, calling_frames())) else gradient


def calling_frames() -> Iterator[FrameType]:
    """Yield the frames of this thread starting with the caller's, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_recorded_function(frame: FrameType) -> bool:
    code = frame.f_code
    if code.co_name != "forward" or not code.co_argcount or code.co_varnames[0] != "ctx":
        return False
    if frame.f_globals.get("__name__", "").startswith(_MACHINERY):
        return False
    context = frame.f_locals.get("ctx")
    return isinstance(context, torch.autograd.function.FunctionCtx) and bool(getattr(context, "next_functions", ()))
