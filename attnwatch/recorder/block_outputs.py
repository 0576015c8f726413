"""Outputs of blocks, sampled by hooks while a step is observed."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import Capture, ForwardPass, in_backward
from attnwatch.capture.compilation import compiles_anything, is_compiled
from attnwatch.capture.forward_pass import gradient_of, or_recorded
from attnwatch.utils.hooks import put

# Number of sequences sampled from a batch, and of tokens sampled from each. Both are evenly spaced.
NUM_SEQUENCES, NUM_TOKENS = 4, 64
# Maximum number of entries in samples that wait for those of other blocks: 64 MiB.
_MOST_WAITING = 2**24

Guard = Callable[[], AbstractContextManager[None]]
Expects = Callable[[nn.Module, ForwardPass], bool]
"""Function that returns whether the output of a block from a forward of this kind counts."""
Receive = Callable[[list[nn.Module], Tensor], None]
"""Function that receives samples of some blocks' outputs, [blocks, sequences, tokens, features]."""


class BlockOutputs:
    """Samples of the outputs of blocks, passed on together.

    Args:
        capture: capture that defines which forwards count: those of the thread in which it is armed.
        expects: see `Expects`.
        receive: see `Receive`.
        guard: function that returns a context that turns errors into a warning.
    """

    def __init__(self, capture: Capture, expects: Expects, receive: Receive, guard: Guard):
        self._capture, self._expects, self._receive, self._guard = capture, expects, receive, guard
        self._waiting: list[tuple[nn.Module, ForwardPass, Tensor]] = []
        self._num_waiting = 0

    @contextlib.contextmanager
    def read(self, model: nn.Module, blocks: Mapping[nn.Module, bool]) -> Iterator[None]:
        """Sample the outputs of blocks while the context is open.

        Nothing is read in a process that compiles models, since adding and removing hooks would trigger recompilation.

        Args:
            model: model that contains the blocks.
            blocks: blocks, each mapped to whether the first axis of its output is the batch.
        """
        if compiles_anything() or is_compiled(model):
            yield
            return
        with contextlib.ExitStack() as hooks:
            for block, is_batch_first in blocks.items():
                hooks.callback(put(block, handles=[block.register_forward_hook(self._hook(is_batch_first))]))
            yield

    def compute(self) -> None:
        """Pass on the waiting samples, with those of the same shape together."""
        waiting = self._waiting
        self.clear()
        groups: dict[Any, list[tuple[nn.Module, Tensor]]] = defaultdict(list)
        for block, of, sample in waiting:
            if self._expects(block, of):  # no greater pass has followed
                groups[sample.shape, sample.dtype, sample.device].append((block, sample))
        for group in groups.values():
            self._receive([block for block, _ in group], torch.stack([sample for _, sample in group]).float())

    def clear(self) -> None:
        """Discard the waiting samples."""
        self._waiting, self._num_waiting = [], 0

    def _hook(self, is_batch_first: bool) -> Callable[[nn.Module, Any, Any], None]:
        def read(block: nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling() or not self._capture.armed or in_backward() or _in_cuda_graph():
                return
            states = next(_tensors(output), None)
            if states is not None and _is_readable(states):
                of = ForwardPass(or_recorded(gradient_of([states])), True, block.training)
                with self._guard(), torch.no_grad():
                    self._take(block, of, states, is_batch_first)

        return read

    def _take(self, block: nn.Module, of: ForwardPass, states: Tensor, is_batch_first: bool) -> None:
        if not self._expects(block, of):
            return
        sample = _sample(states.detach(), is_batch_first)
        self._waiting.append((block, of, sample))
        self._num_waiting += sample.numel()
        if self._num_waiting > _MOST_WAITING:
            self.compute()


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in the output of a module, the states first."""
    if isinstance(output, Tensor):
        yield output
    parts: Iterable[Any] = output.values() if isinstance(output, Mapping) else ()
    for part in output if isinstance(output, tuple | list) else parts:
        yield from _tensors(part)


def _is_readable(states: Tensor) -> bool:
    is_plain = type(states) in (Tensor, nn.Parameter) and states.layout is torch.strided
    return is_plain and states.is_floating_point() and states.ndim > 1 and states.device.type != "meta"


def _sample(states: Tensor, is_batch_first: bool) -> Tensor:
    """Return a copy of evenly spaced tokens of evenly spaced sequences: [sequences, tokens, features]."""
    if states.ndim == 2:
        states = states.unsqueeze(0)
    elif states.ndim == 3 and not is_batch_first:
        states = states.transpose(0, 1)
    states = states.flatten(1, -2)
    return states[_spread(len(states), NUM_SEQUENCES), _spread(states.shape[1], NUM_TOKENS)].clone()


def _spread(number: int, most: int) -> slice:
    """Return a slice of at most `most` of `number` places, in the middle of equal parts."""
    distance = max(-(-number // most), 1)
    return slice((distance - 1) // 2, None, distance)


def _in_cuda_graph() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
