"""Parameters of blocks before and after optimizer steps."""

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from attnwatch.capture import is_split
from attnwatch.recorder.block_outputs import Guard
from attnwatch.utils.entries import as_real, spread_entries
from attnwatch.utils.processes import has_processes

# Number of entries of a block that are compared: a ratio of two of their norms has a standard error below one percent.
_NUM_ENTRIES = 2**14
# Attributes that FSDP1 and DeepSpeed's ZeRO set on parameters of which a process holds only parts.
_MARKS_OF_PARTS = ("_fsdp_flattened", "ds_id")

Receive = Callable[[list[nn.Module], tuple[Tensor, Tensor]], None]
"""Function that receives entries of some blocks before and after a step, each float32 [blocks, entries]."""


class OptimizerSteps:
    """Samples of the parameters of blocks before and after optimizer steps.

    If several optimizers step in one training step, or one steps twice, the change is the total of these steps.

    Args:
        blocks: function that returns the blocks to sample now; none if the step is not observed.
        begins: function that is called before a step whose gradients are complete.
        receive: see `Receive`.
        guard: function that returns a context that turns errors into a warning.
    """

    def __init__(
        self,
        blocks: Callable[[], Sequence[nn.Module]],
        begins: Callable[[], None],
        receive: Receive,
        guard: Guard,
    ):
        self._blocks, self._begins, self._receive, self._guard = blocks, begins, receive, guard
        self._optimizers: list[Optimizer] = []
        self._handles: list[RemovableHandle] = []
        self._before: dict[nn.Module, tuple[list[nn.Parameter], Tensor]] = {}
        weakref.finalize(self, _remove, self._handles).atexit = False

    def follow(self, optimizers: Iterable[Any]) -> None:
        """Observe the steps of these optimizers from now on. Objects that are not torch optimizers are ignored."""
        for optimizer in optimizers:
            inner = getattr(optimizer, "optimizer", optimizer)  # unwrapped from accelerate's wrapper
            if isinstance(inner, Optimizer) and not any(inner is known for known in self._optimizers):
                self._optimizers.append(inner)
                self._watch(inner)

    def begin(self) -> None:
        """Begin another training step."""
        self._before.clear()

    def attach(self) -> None:
        """Observe the steps again after `close`."""
        if not self._handles:
            for optimizer in self._optimizers:
                self._watch(optimizer)

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        _remove(self._handles)
        self._before.clear()

    def _watch(self, optimizer: Optimizer) -> None:
        begin, end = weakref.WeakMethod(self._begin_step), weakref.WeakMethod(self._end_step)
        self._handles.append(optimizer.register_step_pre_hook(functools.partial(_call, begin)))
        self._handles.append(optimizer.register_step_post_hook(functools.partial(_call, end)))

    def _begin_step(self, optimizer: Optimizer, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            with self._guard(), torch.no_grad():
                closures = (*arguments[1:], options.get("closure"))  # a closure computes the gradients
                if all(closure is None for closure in closures):
                    self._begins()
                self._take_before([block for block in self._blocks() if block not in self._before])

    def _end_step(self, optimizer: Optimizer, *arguments: Any) -> None:
        if not torch.compiler.is_compiling() and self._blocks():
            with self._guard(), torch.no_grad():
                self._take_after(_parameters([optimizer]))

    def _take_before(self, blocks: Sequence[nn.Module]) -> None:
        trained = _parameters(self._optimizers) if blocks else set()
        for block in blocks:
            parameters = [each for each in whole_parameters(block) if each.requires_grad and each in trained]
            if parameters:
                self._before[block] = parameters, _entries(parameters)

    def _take_after(self, stepped: set[nn.Parameter]) -> None:
        groups: dict[Any, list[tuple[nn.Module, Tensor, Tensor]]] = defaultdict(list)
        for block, (parameters, before) in self._before.items():
            if not stepped.isdisjoint(parameters):
                groups[before.shape, before.device].append((block, before, _entries(parameters)))
        for group in groups.values():
            blocks = [block for block, _, _ in group]
            stacked = torch.stack([before for _, before, _ in group]), torch.stack([after for _, _, after in group])
            self._receive(blocks, stacked)


def _call(method: "weakref.WeakMethod[Callable[..., None]]", *arguments: Any) -> None:
    """Call a method if its object still exists, since hooks must not keep an unclosed recorder alive."""
    function = method()
    if function is not None:
        function(*arguments)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def whole_parameters(block: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a block; none if this process holds only parts of them (FSDP, tensor parallelism)."""
    parameters = list(block.parameters())
    is_split_now = has_processes() and is_split(block)
    is_marked = any(hasattr(each, mark) for each in parameters for mark in _MARKS_OF_PARTS)
    return [] if is_split_now or is_marked else parameters


def _parameters(optimizers: Iterable[Optimizer]) -> set[nn.Parameter]:
    return {each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}


def _entries(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return evenly spaced entries of parameters, from each in proportion to its size: float32 [entries]."""
    numbers = [as_real(each.detach()) for each in parameters]
    distance = sum(each.numel() for each in numbers) // _NUM_ENTRIES
    return torch.cat([spread_entries(each, distance) for each in numbers]).float()
