"""Old gradients that exist before the first backward after an optimizer step, and are reused."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.checkup.guard import Guard

# Number of parameters sampled from each optimizer, evenly from first to last.
_NUM_PARAMETERS = 8


class StaleGradients:
    """Norms of the gradients that exist before a forward pass and when its backward pass begins, on the device.

    Both must be old: gradients are often cleared between the two, and parameters that the loss uses itself get their
    new gradients before the outputs of the model do. Only the optimizers get hooks: parameters with hooks could not be
    replaced, as removing heads requires.

    Args:
        model: model being trained.
        optimizers: optimizers that train it.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], guard: Guard):
        self._handles: list[Any] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._expects: set[str] = set()
        self._before: dict[str, Tensor] = {}
        self._added_to: dict[str, Tensor | None] = {}
        self._old: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for optimizer in optimizers:
            held = [each for group in optimizer.param_groups for each in group["params"] if each in names]
            chosen = {names[each]: each for each in held[:: math.ceil(len(held) / _NUM_PARAMETERS) or 1]}
            self._parameters |= chosen
            of_optimizer = frozenset(chosen)
            inner = getattr(optimizer, "optimizer", optimizer)  # inside the wrapper of accelerate
            self._handles.append(inner.register_step_pre_hook(guard(partial(self._begin, of_optimizer))))
            self._handles.append(inner.register_step_post_hook(guard(partial(self._end, of_optimizer))))

    def begin_forward(self) -> None:
        """Compute the norms of the gradients before a forward pass, if an optimizer has stepped since the last one."""
        for name in self._expects & self._parameters.keys():
            self._before[name] = _norm(self._parameters[name])
            self._added_to[name] = self._parameters[name].grad

    def begin_backward(self) -> None:
        """Compute the norms of the gradients that new ones may be added to."""
        for name, parameter in self._parameters.items():
            old = _norm(parameter)
            if name in self._expects:
                self._old[name] = torch.minimum(old, self._before.pop(name, old))
            elif name in self._old:
                self._old[name] = torch.minimum(self._old[name], old)
        self._expects.clear()

    def take(self) -> dict[str, Tensor]:
        """Return the norms of old gradients in optimizer steps since the last call, by name; 0 if they were cleared."""
        norms, self._norms = self._norms, {}
        return norms

    def close(self) -> None:
        """Remove the hooks."""
        self._parameters.clear()
        self._added_to.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, names: frozenset[str], *step: Any) -> None:
        """Keep the norms of the old gradients that a step's gradients were added to, unless cleared in between."""
        for name in names & self._old.keys():
            old, gradient = self._old.pop(name), self._parameters[name].grad
            # Gradients of torch.autograd.grad take the place of the old ones.
            is_replaced = name in self._added_to and self._added_to.pop(name) is not gradient
            self._norms[name] = torch.zeros_like(old) if is_replaced else old

    def _end(self, names: frozenset[str], *step: Any) -> None:
        self._expects |= names


def _norm(parameter: nn.Parameter) -> Tensor:
    """Return the norm of a gradient; 0 if there is none."""
    gradient = parameter.grad
    return torch.zeros((), device=parameter.device) if gradient is None else gradient.detach().norm()
