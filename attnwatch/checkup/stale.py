"""Gradients that are still there when the first new ones after a step of the optimizer come, and are used again."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Parameters that are looked at, from the first to the last of the model.
_NUM_PARAMETERS = 8


class StaleGradients:
    """Norms of old gradients, taken on the device when new ones are about to be added.

    Args:
        model: model that trains.
        optimizers: optimizers that train it.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]):
        self._handles: list[Any] = []
        self._expects: set[str] = set()
        self._old: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for optimizer in optimizers:
            held = [each for group in optimizer.param_groups for each in group["params"] if each in names]
            chosen = held[:: max(len(held) // _NUM_PARAMETERS, 1)]
            for parameter in chosen:
                self._handles.append(parameter.register_hook(partial(self._receive, parameter, names[parameter])))
            of_optimizer = frozenset(names[parameter] for parameter in chosen)
            inner = getattr(optimizer, "optimizer", optimizer)  # inside the wrapper of accelerate
            self._handles.append(inner.register_step_pre_hook(partial(self._begin, of_optimizer)))
            self._handles.append(inner.register_step_post_hook(partial(self._end, of_optimizer)))

    def take(self) -> dict[str, Tensor]:
        """Return the norms that optimizers have stepped with since the last call, by name; 0 if all was cleared."""
        norms, self._norms = self._norms, {}
        return norms

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, names: frozenset[str], *step: Any) -> None:
        """Keep what the gradients of a step were added to. What was cleared in between is not in them."""
        for name in names & self._old.keys():
            self._norms[name] = self._old.pop(name)

    def _end(self, names: frozenset[str], *step: Any) -> None:
        self._expects |= names

    def _receive(self, parameter: nn.Parameter, name: str, gradient: Tensor) -> None:
        old = gradient.new_zeros(()) if parameter.grad is None else parameter.grad.detach().norm()
        if name in self._expects:
            self._expects.discard(name)
            self._old[name] = old
        elif name in self._old:
            self._old[name] = torch.minimum(self._old[name], old)
