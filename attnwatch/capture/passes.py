"""Which kind of forward a call belongs to: a step's statistics are those of the forwards that are trained on."""

import sys
from collections.abc import Iterable
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor

# Of what compiled code and operators run in, which say nothing of the call.
_MACHINERY = ("torch._functorch", "torch._library", "torch._dynamo")


class Pass(NamedTuple):
    """One call's forward. Of the calls of a module in one step, only those of the greatest pass count.

    Attributes:
        gradient: 2 where query or key needs one; 1 where autograd is on, but neither does, as in a frozen part or in a
            whole pass with frozen weights; 0 where it is off: sampling, a reference, a teacher, validation.
        is_whole: it is no decoding of single tokens beside a key-value cache.
        is_training: the module is in train mode.
    """

    gradient: int
    is_whole: bool
    is_training: bool


def gradient_of(sources: Iterable[Tensor]) -> int:
    """The `gradient` of a pass, as far as the tensors tell that its query and key are, or are computed from."""
    if not torch.is_grad_enabled():
        return 0
    return 2 if any(tensor.requires_grad for tensor in sources) else 1


def or_recorded(gradient: int) -> int:
    """That, or 2 where autograd has what runs now run again in the backward, and records it then.

    Reentrant activation checkpointing runs a forward without gradients, inside an `autograd.Function`; that this one is
    recorded shows in its edges to the functions before.
    """
    return 2 if gradient == 2 or in_recorded_function() else gradient


def in_recorded_function() -> bool:
    """Whether an `autograd.Function` whose forward runs now is recorded."""
    frame = sys._getframe(1)
    while frame is not None:
        if _is_recorded_function(frame):
            return True
        frame = frame.f_back
    return False


def _is_recorded_function(frame: FrameType) -> bool:
    code = frame.f_code
    if code.co_name != "forward" or not code.co_argcount or code.co_varnames[0] != "ctx":
        return False
    if frame.f_globals.get("__name__", "").startswith(_MACHINERY):
        return False
    context = frame.f_locals.get("ctx")
    return isinstance(context, torch.autograd.function.FunctionCtx) and bool(getattr(context, "next_functions", ()))
