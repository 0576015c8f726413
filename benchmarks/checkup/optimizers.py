"""Optimizers that are written by hand."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.checkup.scripts import MakeOptimizers

Move = Callable[[nn.Parameter, float, dict[str, Any]], object]
"""Function of a parameter with a gradient, the rate and the state of the parameter, which changes the parameter."""


class ByHand(Optimizer):
    """Optimizer that moves each parameter by a function."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, move: Move):
        super().__init__(parameters, {"lr": lr})
        self._move = move

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], self.state[parameter])
        return None


def moved_by(rate: float, move: Move) -> MakeOptimizers:
    """Return the function that makes one optimizer by hand for all parameters."""
    return lambda model: [ByHand(model.parameters(), rate, move)]


def descend(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Descend the gradient."""
    parameter.sub_(parameter.grad, alpha=rate)


def ascend(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Ascend the gradient."""
    parameter.add_(parameter.grad, alpha=rate)


def descend_in_float32(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Descend the gradient in float32, which for other dtypes is a copy."""
    parameter.float().add_(parameter.grad.float(), alpha=-rate)


def compensate(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Step by signs of a mean of gradients, and keep what rounding has left out for the next step."""
    if not state:
        state["mean"], state["left"] = (torch.zeros_like(parameter, dtype=torch.float32) for _ in range(2))
    state["mean"].lerp_(parameter.grad.float(), 0.1)
    wanted = parameter.float() + state["left"] - rate * state["mean"].sign()
    parameter.copy_(wanted)
    state["left"] = wanted - parameter.float()


def trust(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Step by a share of the parameter's own norm, as LARS does."""
    if parameter.grad.norm() > 0:
        size = parameter.norm().clamp(min=0.1) / parameter.grad.norm()
        parameter.sub_(rate * size * parameter.grad)
