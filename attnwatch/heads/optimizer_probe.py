"""Probe of an unknown optimizer, with steps of a toy parameter, cut and uncut."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.utils.random_states import random_states_kept

State = dict[str, Any]
Cut = Callable[[Tensor], Tensor]
"""Function that selects the remaining entries from a tensor with the old parameter's shape."""
CutState = Callable[[State], State | None]
"""Function that returns the state of the cut parameter; None if it is reset."""

_WARM_UP, _COMPARED = 2, 10
# Share of the largest change of an entry, for float64, float32 and coarser types.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_COARSE = 3e-2


@dataclass(frozen=True)
class _Steps:
    """Steps of a toy parameter after the cut.

    Attributes:
        changes: changes of the parameter, step by step.
        moved: names of the tensors in its state that changed.
    """

    changes: list[Tensor]
    moved: set[str]


@dataclass(frozen=True)
class _Way:
    """A way to build a toy optimizer: the function to use, and the precision of the numbers."""

    make: Callable[[Optimizer, nn.Parameter, dict[str, Any]], Optimizer]
    dtype: torch.dtype


class OptimizerProbe:
    """Toy copies of one optimizer, each holding one parameter with the options and state of the real one.

    Args:
        optimizer: the real optimizer; it is not changed.
        group: entry of its `param_groups` that holds the parameter.
        parameter: parameter to cut.
        cut: function that returns the remaining entries of the parameter.
    """

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter, cut: Cut):
        self._optimizer, self._parameter, self._cut = optimizer, parameter, cut
        self._options = {name: value for name, value in group.items() if name != "params"}
        self._state = optimizer.state.get(parameter, {})
        uncut = ((way, self._run(way, None)) for way in self._ways())
        self._uncut = next(((way, steps) for way, steps in uncut if steps is not None), None)

    @property
    def is_possible(self) -> bool:
        """True if a toy that can step could be built."""
        return self._uncut is not None

    def can_cut(self, cut_state: CutState) -> bool:
        """Return whether steps of the cut parameter with the cut state equal those of the whole one, entry by entry.

        All entries of the state that the cut changes must have changed in these steps.
        """
        if self._uncut is None:
            return False
        way, whole = self._uncut
        part = self._run(way, cut_state)
        of_entries = {
            name for name, value in self._state.items() if getattr(value, "shape", ()) == self._parameter.shape
        }
        if part is None or not of_entries <= whole.moved:
            return False
        pairs = zip(whole.changes, part.changes, strict=True)
        return all(_is_close(self._cut(expected), got) for expected, got in pairs)

    def can_reset(self) -> bool:
        """Return whether the optimizer creates new state for a parameter without state."""
        return self.is_possible and any(self._run(way, lambda _: None) is not None for way in self._ways())

    def _ways(self) -> Iterator[_Way]:
        """Iterate over the ways, exact numbers first; some optimizers create state in single precision only."""
        for dtype in dict.fromkeys((torch.float64, self._parameter.dtype)):
            for make in (_by_attributes, _by_constructor):
                yield _Way(make, dtype)

    def _run(self, way: _Way, cut_state: CutState | None) -> _Steps | None:
        """Return the steps of a toy; None if a step fails. Without `cut_state`, nothing is cut."""
        with random_states_kept([self._parameter.device], seed=0), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                return self._steps(way, cut_state)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception:  # from unknown code, called in a way that it may not support
                return None

    def _steps(self, way: _Way, cut_state: CutState | None) -> _Steps:
        toy = nn.Parameter(self._parameter.detach().to(way.dtype, copy=True))
        optimizer = way.make(self._optimizer, toy, copy.deepcopy(self._options))
        optimizer.param_groups[0].update(copy.deepcopy(self._options))
        if self._state:
            optimizer.state[toy] = {name: _in_precision(value, way.dtype) for name, value in self._state.items()}
        gradients = [_gradient(toy, seed) for seed in range(_WARM_UP + _COMPARED)]
        for gradient in gradients[:_WARM_UP]:
            _step(optimizer, toy, gradient)
        if cut_state is not None:
            toy = self._cut_toy(optimizer, toy, cut_state)
            gradients = [self._cut(gradient) for gradient in gradients]
        before = copy.deepcopy(dict(optimizer.state.get(toy, {})))
        changes = [_step(optimizer, toy, gradient) for gradient in gradients[_WARM_UP:]]
        return _Steps(changes, _moved(before, optimizer.state.get(toy, {})))

    def _cut_toy(self, optimizer: Optimizer, whole: nn.Parameter, cut_state: CutState) -> nn.Parameter:
        """Replace the whole toy parameter by a cut one, as is done with the real parameter."""
        toy = nn.Parameter(self._cut(whole.detach()))
        optimizer.param_groups[0]["params"][0] = toy
        state = cut_state(optimizer.state.pop(whole, {}))
        if state is not None:
            optimizer.state[toy] = state
        return toy


def _step(optimizer: Optimizer, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    before = parameter.detach().clone()
    parameter.grad = gradient.clone()
    optimizer.step()
    return parameter.detach() - before


def _gradient(parameter: nn.Parameter, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(parameter.shape, generator=generator).to(parameter)


def _is_close(expected: Tensor, got: Tensor) -> bool:
    if expected.shape != got.shape or not (expected.isfinite().all() and got.isfinite().all()):
        return False
    tolerance = _TOLERANCES.get(expected.dtype, _COARSE)
    return not expected.numel() or bool((expected - got).abs().max() <= tolerance * expected.abs().max())


def _moved(before: State, after: State) -> set[str]:
    tensors = {name: value for name, value in before.items() if isinstance(value, Tensor) and name in after}
    return {name for name, value in tensors.items() if not torch.equal(value, after[name])}


def _in_precision(value: Any, dtype: torch.dtype) -> Any:
    """Return a copy whose floating-point tensors, at any depth, have this precision."""
    if isinstance(value, Tensor):
        return value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
    if type(value) in (list, tuple):
        return type(value)(_in_precision(entry, dtype) for entry in value)
    if type(value) is dict:
        return {name: _in_precision(entry, dtype) for name, entry in value.items()}
    return copy.deepcopy(value)


def _by_constructor(optimizer: Optimizer, parameter: nn.Parameter, options: dict[str, Any]) -> Optimizer:
    """Call the optimizer's class with options taken from its group, defaults or attributes by argument name."""
    known = {**vars(optimizer), **optimizer.defaults, **options}
    _, *arguments = list(inspect.signature(type(optimizer)).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {argument.name for argument in arguments if argument.kind in kinds}
    return type(optimizer)([parameter], **{name: known[name] for name in known if name in named})


def _by_attributes(optimizer: Optimizer, parameter: nn.Parameter, options: dict[str, Any]) -> Optimizer:
    """Create an optimizer without its constructor, copying attributes that are plain values or functions."""
    toy = object.__new__(type(optimizer))
    ours = vars(Optimizer([nn.Parameter(torch.zeros(1))], {}))
    vars(toy).update({name: value for name, value in vars(optimizer).items() if name not in ours and _is_plain(value)})
    Optimizer.__init__(toy, [{**options, "params": [parameter]}], dict(optimizer.defaults))
    return toy


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | torch.dtype) or inspect.isroutine(value)
