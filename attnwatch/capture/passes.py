"""Which kind of forward a call belongs to: a step's statistics are those of the forwards that are trained on."""

import sys
from types import FrameType
from typing import NamedTuple

import torch

# Of what compiled code and operators run in, which say nothing of the call.
_MACHINERY = ("torch._functorch", "torch._library", "torch._dynamo")


class Pass(NamedTuple):
    """One call's forward. Of the calls of a module in one step, only those of the greatest pass count.

    Attributes:
        has_gradient: autograd records it. Not so: sampling, a reference, a teacher, validation, a frozen part.
        is_whole: it is no decoding of single tokens beside a key-value cache.
        is_training: the module is in train mode.
    """

    has_gradient: bool
    is_whole: bool
    is_training: bool


def has_gradient() -> bool:
    """Whether autograd records what is computed now, or has it run again in the backward and recorded then.

    Reentrant activation checkpointing runs a forward without gradients, inside an `autograd.Function`; that this one is
    recorded shows in its edges to the functions before.
    """
    return torch.is_grad_enabled() or in_recorded_function()


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
