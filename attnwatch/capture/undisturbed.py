"""Forwards beside a training, which leave no trace in the model or in the random states."""

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from attnwatch.capture.delivery import unwatched

LARGEST_COPY = 2**20
"""Number of entries of a buffer up to which it is copied and restored. Most larger ones are masks and tables."""


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, gradients: bool = False, as_in_training: bool = False) -> Iterator[None]:
    """Call a model in eval mode, not compiled, unobserved and without autocast; restore everything afterwards.

    Args:
        model: model that is called in the context.
        gradients: record the operations for a backward.
        as_in_training: leave the mode and autocast as they are.
    """
    states = [_State(module) for module in model.modules()]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        for state in states:
            stack.callback(state.restore)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(unwatched())
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.set_grad_enabled(gradients))
        if "torch._dynamo" in sys.modules:  # other shapes must not make a compiled training compile again
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if not as_in_training:
            stack.enter_context(torch.autocast(device.type, enabled=False))
            model.eval()
        yield


class _State:
    """State of a module before the forwards: mode and other plain attributes, and its buffers."""

    def __init__(self, module: nn.Module):
        plain = bool | int | float | str | Tensor | None
        self._module = module
        self._attributes = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
        self._buffers = dict(module._buffers)  # rotary embeddings replace theirs
        self._copies = [
            (buffer, buffer._version, buffer.clone())
            for buffer in self._buffers.values()
            if buffer is not None and buffer.numel() <= LARGEST_COPY
        ]

    def restore(self) -> None:
        vars(self._module).update(self._attributes)
        self._module._buffers.update(self._buffers)
        for buffer, version, copy in self._copies:
            if buffer._version != version:
                buffer.copy_(copy)
