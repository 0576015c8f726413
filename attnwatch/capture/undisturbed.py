"""Extra forwards during training that leave the model and the random states unchanged."""

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnwatch.capture.delivery import unwatched
from attnwatch.utils.random_states import devices_of, random_states_kept

LARGEST_COPY = 2**20
"""Largest number of entries of a buffer to copy and restore. Most larger buffers are masks and tables."""


@contextlib.contextmanager
def undisturbed(
    model: nn.Module, *, gradients: bool = False, as_in_training: bool = False, seed: int | None = None
) -> Iterator[None]:
    """Run a model in eval mode, not compiled, unobserved and without autocast; restore everything afterwards.

    Args:
        model: model to call in the context.
        gradients: True to record the operations for a backward.
        as_in_training: True to leave the mode and autocast as they are.
        seed: seed of torch's random numbers in the context; None leaves their states as they are.
    """
    states = [_State(module) for module in model.modules()]
    devices = devices_of(model)
    with contextlib.ExitStack() as stack:
        for state in states:
            stack.callback(state.restore)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(unwatched())
        stack.enter_context(random_states_kept(devices, seed=seed))
        stack.enter_context(torch.set_grad_enabled(gradients))
        if "torch._dynamo" in sys.modules:  # other shapes must not recompile a compiled model
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if not as_in_training:
            for kind in {"cpu", *(device.type for device in devices)}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            model.eval()
        yield


class _State:
    """State of a module before the forwards: mode and other plain attributes, and its buffers."""

    def __init__(self, module: nn.Module):
        self._module = module
        self._attributes = _plain_attributes(module)
        self._buffers = dict(module._buffers)  # rotary embeddings replace theirs
        self._copies = [
            (buffer, buffer._version, buffer.clone())
            for buffer in self._buffers.values()
            if buffer is not None and buffer.numel() <= LARGEST_COPY
        ]

    def restore(self) -> None:
        if isinstance(self._module, torch.jit.ScriptModule):  # its attributes and buffers are not in Python dicts
            for name, value in self._attributes.items():
                setattr(self._module, name, value)
        else:
            vars(self._module).update(self._attributes)
            self._module._buffers.update(self._buffers)
        for buffer, version, copy in self._copies:
            if buffer._version != version:
                buffer.copy_(copy)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    if not isinstance(module, torch.jit.ScriptModule):
        plain = bool | int | float | str | Tensor | None
        return {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    kind = getattr(module, "_concrete_type", None)  # traced modules have none, and their attributes do not change
    names = ("training", *(() if kind is None else kind.get_attributes()))
    values = {name: getattr(module, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
