"""Replacement of cut parameters in optimizers, keeping groups, options and, where possible, state."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.optimizer_probe import Cut, OptimizerProbe, State
from attnwatch.utils.messages import warn

Take = Cut

# State with one value for each entry of the parameter, by optimizer class.
ELEMENTWISE: dict[type[Optimizer], frozenset[str]] = {
    optim.SGD: frozenset({"momentum_buffer"}),
    optim.Adam: frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    optim.AdamW: frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    optim.NAdam: frozenset({"exp_avg", "exp_avg_sq"}),
    optim.RAdam: frozenset({"exp_avg", "exp_avg_sq"}),
    optim.Adamax: frozenset({"exp_avg", "exp_inf"}),
    optim.Adadelta: frozenset({"square_avg", "acc_delta"}),
    optim.Adagrad: frozenset({"sum"}),
    optim.RMSprop: frozenset({"square_avg", "momentum_buffer", "grad_avg"}),
    optim.Rprop: frozenset({"prev", "step_size"}),
    optim.ASGD: frozenset({"ax"}),
    optim.Adafactor: frozenset({"variance"}),
}
if hasattr(optim, "Muon"):  # since PyTorch 2.9
    ELEMENTWISE[optim.Muon] = frozenset({"momentum_buffer"})
# The same for classes that are not imported here.
_ELEMENTWISE_BY_NAME = {"transformers.optimization.Adafactor": frozenset({"exp_avg", "exp_avg_sq"})}


@dataclass
class ParameterSwap:
    """Change of one optimizer, which replaces the old parameter with the new one."""

    optimizer: Optimizer
    group: int
    position: int
    old: nn.Parameter
    new: nn.Parameter
    old_state: State | None
    new_state: State | None

    def apply(self) -> None:
        """Insert the new parameter and its state."""
        self._put(self.old, self.new, self.new_state)

    def revert(self) -> None:
        """Restore the old parameter and its state."""
        self._put(self.new, self.old, self.old_state)

    def _put(self, old: nn.Parameter, new: nn.Parameter, state: State | None) -> None:
        self.optimizer.param_groups[self.group]["params"][self.position] = new
        self.optimizer.state.pop(old, None)
        if state is not None:
            self.optimizer.state[new] = state


def plan_swaps(
    optimizers: Iterable[Optimizer], replaced: dict[nn.Parameter, tuple[nn.Parameter, Take]]
) -> list[ParameterSwap]:
    """Return the changes to the optimizers, without making them.

    The state of known optimizers is cut by declaration (`ELEMENTWISE`). The state of others is cut if steps of a toy
    parameter, cut and uncut, agree; otherwise it is reset, with a warning.

    Raises:
        ConfigurationError: an optimizer can't continue after the cut.
    """
    swaps: list[ParameterSwap] = []
    reset: dict[type[Optimizer], int] = {}
    for optimizer in dict.fromkeys(part for each in optimizers for part in _parts(each)):
        states = _States(optimizer)
        _refuse_one_vector(optimizer)
        if not states.is_known:
            _refuse_held_elsewhere(optimizer, replaced)
        for index, group in enumerate(optimizer.param_groups):
            for position, old in enumerate(group["params"]):
                if old not in replaced:
                    continue
                new, take = replaced[old]
                _refuse_impossible(optimizer, new)
                state = optimizer.state.get(old)
                kept = states.of_cut(index, old, new, take)
                if state and not kept:
                    reset[type(optimizer)] = reset.get(type(optimizer), 0) + 1
                swaps.append(ParameterSwap(optimizer, index, position, old, new, state, kept))
    for kind, number in reset.items():
        warn(_why_anew(kind, number))
    return swaps


def forget_other_sizes(optimizer: Optimizer) -> None:
    """Reset state whose sizes differ from those of its parameter, which a state dict has resized."""
    declared = elementwise_state(optimizer)
    if declared is None:
        return
    for parameter, state in list(optimizer.state.items()):
        sizes = {value.shape for name, value in state.items() if name in declared and isinstance(value, Tensor)}
        if sizes - {parameter.shape}:
            del optimizer.state[parameter]


class _States:
    """State of one optimizer after a cut; similar parameters are probed once."""

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._declared = elementwise_state(optimizer)
        self._verdicts: dict[tuple[Any, ...], str] = {}

    @property
    def is_known(self) -> bool:
        """True if the optimizer's elementwise state is declared."""
        return self._declared is not None

    def of_cut(self, index: int, old: nn.Parameter, new: nn.Parameter, take: Take) -> State | None:
        """Return the state of the new parameter, or None if it is reset."""
        state = self._optimizer.state.get(old)
        if self._declared is not None:
            return cut_declared(state, old, take, self._declared) if state else None
        kind = (index, old.shape, _cut_dimensions(old, new), old.dtype, old.device, _kind_of(state))
        if kind not in self._verdicts:
            self._verdicts[kind] = self._verdict(index, old, take)
        verdict = self._verdicts[kind]
        if verdict == "refuse":
            raise ConfigurationError(
                f"`optimizers`: {type(self._optimizer).__name__} is not a known optimizer, and a probe could not show "
                f"that it continues when a parameter {list(old.shape)} becomes {list(new.shape)}: neither with its "
                f"state {sorted(state or {})} cut nor with new state. Cut heads before creating the optimizer, or "
                "train with an optimizer from torch.optim."
            )
        return cut_alike(state, old, take) if state and verdict == "cut" else None

    def _verdict(self, index: int, old: nn.Parameter, take: Take) -> str:
        state = self._optimizer.state.get(old)
        probe = OptimizerProbe(self._optimizer, self._optimizer.param_groups[index], old, take)
        if state and cut_alike(state, old, take) is not None and probe.can_cut(lambda s: cut_alike(s, old, take)):
            return "cut"
        has_nothing = not state and not probe.is_possible
        return "reset" if has_nothing or probe.can_reset() else "refuse"


def elementwise_state(optimizer: Optimizer) -> frozenset[str] | None:
    """Return the names of the optimizer's elementwise state; None for unknown optimizers.

    A subclass is known as long as it does not change the step of its base class.
    """
    kind = type(optimizer)
    for base in kind.__mro__:
        if f"{base.__module__}.{base.__qualname__}" in _ELEMENTWISE_BY_NAME and base is kind:
            return _ELEMENTWISE_BY_NAME[f"{base.__module__}.{base.__qualname__}"]
        if base in ELEMENTWISE:
            methods = {name for of in base.__mro__ if issubclass(of, Optimizer) for name in vars(of)} - {"__init__"}
            methods = {name for name in methods if inspect.isfunction(getattr(base, name))}
            is_same = all(inspect.unwrap(getattr(kind, n)) is inspect.unwrap(getattr(base, n)) for n in methods)
            return ELEMENTWISE[base] if is_same else None
    return None


def cut_declared(state: State, parameter: nn.Parameter, take: Take, names: Iterable[str]) -> State | None:
    """Return the state with these entries cut; None if another part of it is more than a number."""
    kept = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and name in names and value.shape == parameter.shape:
            kept[name] = take(value)
        elif isinstance(value, Tensor) and (name in names or value.numel() != 1):
            return None
        elif isinstance(value, Tensor):
            kept[name] = value.clone()
        elif _is_number(value):
            kept[name] = value
        else:
            return None
    return kept


def cut_alike(state: State, parameter: nn.Parameter, take: Take) -> State | None:
    """Return the state with all tensors of the parameter's shape cut; None if another part is more than a number."""
    alike = {name for name, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape}
    return cut_declared(state, parameter, take, alike)


def _is_number(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_number, value))
    return value is None or isinstance(value, int | float | str)


def _cut_dimensions(old: nn.Parameter, new: nn.Parameter) -> tuple[tuple[bool, bool], ...]:
    """Return for each dimension whether it is cut, and whether nothing remains of it."""
    return tuple((before != after, after == 0) for before, after in zip(old.shape, new.shape, strict=True))


def _kind_of(state: State | None) -> tuple[Any, ...]:
    return tuple(
        (name, value.dtype, value.shape) if isinstance(value, Tensor) else (name, type(value))
        for name, value in (state or {}).items()
    )


def _parts(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Iterate over the optimizer, if it holds anything of its own, and the optimizers that it wraps."""
    inner = [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    if not inner or "param_groups" in vars(optimizer):
        yield optimizer
    for part in inner:
        yield from _parts(part)


def _refuse_one_vector(optimizer: Optimizer) -> None:
    """Raise a `ConfigurationError` for an optimizer that keeps one vector for all parameters."""
    if isinstance(optimizer, optim.LBFGS):
        raise ConfigurationError("`optimizers`: LBFGS keeps one vector for all parameters, which can't be cut.")


def _refuse_impossible(optimizer: Optimizer, new: nn.Parameter) -> None:
    if not new.numel() and type(optimizer).__name__ in ("Adafactor", "Muon"):
        raise ConfigurationError(
            f"`optimizers`: {type(optimizer).__name__} does not work with empty parameters; keep a head in every layer."
        )


def _refuse_held_elsewhere(optimizer: Optimizer, replaced: dict[nn.Parameter, Any]) -> None:
    """Raise a `ConfigurationError` if an optimizer keeps parameters outside its groups and its state."""
    ids = {id(parameter) for parameter in replaced}
    for name, value in vars(optimizer).items():
        if name not in ("param_groups", "state") and any(id(entry) in ids for entry in _leaves(value)):
            raise ConfigurationError(
                f"`optimizers`: {type(optimizer).__name__} also keeps parameters in its attribute {name!r}, where a "
                "cut can't replace them. Cut heads before creating the optimizer."
            )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (leaf for pair in value.items() for entry in pair for leaf in _leaves(entry))
    elif isinstance(value, list | tuple | set):
        yield from (leaf for entry in value for leaf in _leaves(entry))
    else:
        yield value


def _why_anew(kind: type[Optimizer], number: int) -> str:
    if kind.__name__ == "Adafactor":
        return (
            "Adafactor keeps sums over whole rows or columns, which can't be cut; its state for the pruned "
            "parameters is reset."
        )
    return (
        f"the state that {kind.__name__} keeps for {number} pruned parameters can't be cut, because it was not shown "
        "to have one value for each entry; it is reset, as before the first step."
    )
