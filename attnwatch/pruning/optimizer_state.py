"""Optimizers follow a parameter that is cut: groups, options and state stay, entry by entry where they can."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.messages import warn

Take = Callable[[Tensor], Tensor]
"""Takes the entries that stay from a tensor of the old parameter's shape."""


@dataclass
class ParameterSwap:
    """One optimizer holds the new parameter in place of the old one."""

    optimizer: Optimizer
    group: int
    position: int
    old: nn.Parameter
    new: nn.Parameter
    old_state: dict[str, Any] | None
    new_state: dict[str, Any] | None

    def apply(self) -> None:
        self._put(self.old, self.new, self.new_state)

    def revert(self) -> None:
        self._put(self.new, self.old, self.old_state)

    def _put(self, old: nn.Parameter, new: nn.Parameter, state: dict[str, Any] | None) -> None:
        self.optimizer.param_groups[self.group]["params"][self.position] = new
        self.optimizer.state.pop(old, None)
        if state is not None:
            self.optimizer.state[new] = state


def plan_swaps(
    optimizers: Iterable[Optimizer], replaced: dict[nn.Parameter, tuple[nn.Parameter, Take]]
) -> list[ParameterSwap]:
    """What changes in the optimizers; nothing is changed yet.

    State of the parameter's shape (Adam's moments, momentum) is cut with it, single numbers stay. State of another
    shape (Adafactor's sums over rows and columns) can't be: all of that parameter's state starts anew, with a warning.

    Raises:
        ConfigurationError: an optimizer that can't go on.
    """
    swaps, reset = [], set()
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            for position, old in enumerate(group["params"]):
                if old not in replaced:
                    continue
                new, take = replaced[old]
                _refuse_impossible(optimizer, new)
                state = optimizer.state.get(old)
                kept = _cut_state(state, old, take)
                if state and not kept:
                    reset.add(type(optimizer).__name__)
                swaps.append(ParameterSwap(optimizer, index, position, old, new, state, kept))
    for name in sorted(reset):
        warn(
            f"{name} keeps sums over whole rows or columns, which can't be cut; its state of the pruned "
            "parameters starts anew.",
            stacklevel=3,
        )
    return swaps


def _cut_state(state: dict[str, Any] | None, parameter: nn.Parameter, take: Take) -> dict[str, Any] | None:
    if not state:
        return None
    kept = {}
    for name, value in state.items():
        if value is None or isinstance(value, int | float | str):
            kept[name] = value
        elif isinstance(value, Tensor) and value.shape == parameter.shape:
            kept[name] = take(value)
        elif isinstance(value, Tensor) and value.numel() == 1:
            kept[name] = value.clone()
        else:
            return None
    return kept


def _refuse_impossible(optimizer: Optimizer, new: nn.Parameter) -> None:
    if isinstance(optimizer, LBFGS):
        raise ConfigurationError("`optimizers`: LBFGS keeps one vector for all parameters, which can't be cut.")
    if not new.numel() and type(optimizer).__name__ in ("Adafactor", "Muon"):
        raise ConfigurationError(
            f"`optimizers`: {type(optimizer).__name__} does not work with empty parameters; keep a head in every layer."
        )
