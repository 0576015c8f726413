"""Layer statistics of the observed steps."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.capture import Capture, ForwardPass
from attnwatch.capture.blocks import find_blocks
from attnwatch.layers import LayerSource, LayerStatistic
from attnwatch.recorder.block_outputs import BlockOutputs
from attnwatch.recorder.calls import SiteCalls
from attnwatch.recorder.layer_values import LayerValues
from attnwatch.recorder.observed_steps import ObservedSteps
from attnwatch.recorder.optimizer_steps import OptimizerSteps, whole_parameters
from attnwatch.recorder.pending import PendingSteps
from attnwatch.utils.entries import as_real
from attnwatch.utils.messages import NonFatal, warn


class LayerRecorder:
    """Compute the layer statistics of the blocks around the sites from tensors that training already has.

    An error causes one warning, after which the columns are nan; if a single statistic fails, only it is left out.

    Args:
        model: model being trained.
        capture: sites of the model.
        steps: observed steps, which determine whether the current one is observed.
        pending: steps on the device; the open one receives the values.
        calls: calls of the sites. Outputs of the blocks of trained sites do not count without gradients.
        reads_itself: True to read parameters when a forward and backward end, or before if an optimizer steps earlier.
    """

    def __init__(
        self,
        model: nn.Module,
        capture: Capture,
        steps: ObservedSteps,
        pending: PendingSteps,
        calls: SiteCalls,
        *,
        reads_itself: bool,
    ):
        self._model, self._capture, self._observed, self._pending = model, capture, steps, pending
        self._calls, self._reads_itself = calls, reads_itself
        self._statistics: dict[LayerSource, list[LayerStatistic]] = defaultdict(list)
        for statistic in LayerStatistic.registry.values():
            self._statistics[statistic.source].append(statistic)
        self._non_fatal = NonFatal()
        self._has_read = False
        self._blocks: dict[nn.Module, list[str]] = {}
        self._outputs = BlockOutputs(capture, self._expects, self._receive_outputs, self._guard)
        self._steps = OptimizerSteps(self._open_blocks, self._read_in_time, self._receive_updates, self._guard)

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Observe the steps of these optimizers, too."""
        self._steps.follow(optimizers)

    def attach(self) -> None:
        """Observe the steps of the optimizers again after `close`."""
        self._steps.attach()

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        self._steps.close()

    def begin(self) -> None:
        """Begin another observed step with the current blocks of the model."""
        self._steps.begin()
        self._outputs.clear()
        self._blocks = {}
        with self._guard():
            blocks = find_blocks(self._model, {site: self._capture.module(site) for site in self._capture.sites})
            for site, block in blocks.items():
                self._blocks.setdefault(block, []).append(site)

    def watching(self) -> AbstractContextManager[None]:
        """Return a context in which the outputs of the blocks are read, for one forward and backward."""
        self._has_read = False
        wanted = self._open_blocks() if self._statistics[LayerSource.OUTPUT] else ()
        return self._outputs.read(self._model, {block: self._is_batch_first(block) for block in wanted})

    def compute(self) -> None:
        """Compute the statistics of the outputs that were read."""
        with self._guard():
            self._outputs.compute()

    def end(self) -> None:
        """End a forward and backward."""
        self.compute()
        if self._reads_itself and not self._has_read:
            self.read_parameters()

    def forget_outputs(self) -> None:
        """Discard the outputs that were read since the last `compute`."""
        self._outputs.clear()

    def read_parameters(self, optimizer: Optimizer | None = None) -> None:
        """Read weights and gradients as they are now.

        Args:
            optimizer: if given, only the blocks with parameters that it trains are read.
        """
        self._has_read = True
        trained = None if optimizer is None else {each for group in optimizer.param_groups for each in group["params"]}
        with self._guard():
            for source, tensors in ((LayerSource.WEIGHTS, _weights), (LayerSource.GRADIENTS, _gradients)):
                self._read(source, tensors, trained)

    def _read_in_time(self) -> None:
        """Read weights and gradients before an optimizer changes them, unless they have been read."""
        if self._reads_itself and self._capture.armed and not self._has_read:
            self.read_parameters()

    def _read(
        self,
        source: LayerSource,
        tensors: Callable[[nn.Module], list[Tensor]],
        trained: set[nn.Parameter] | None,
    ) -> None:
        by_device: dict[torch.device, list[tuple[nn.Module, list[Tensor]]]] = defaultdict(list)
        for block in self._open_blocks() if self._statistics[source] else ():
            of_block = tensors(block) if trained is None or not trained.isdisjoint(block.parameters()) else []
            if of_block:
                by_device[of_block[0].device].append((block, of_block))
        for group in by_device.values():
            given = [of_block for _, of_block in group]
            self._compute(source, [block for block, _ in group], given, LayerValues.put)

    def _open_values(self) -> LayerValues | None:
        """Return the values of the step that is being observed; None if there is none."""
        is_open = self._observed.is_observing and self._pending.step is not None
        return self._pending.layers if is_open else None

    def _open_blocks(self) -> Sequence[nn.Module]:
        if self._open_values() is None or self._non_fatal.has_failed("layers"):
            return ()
        return tuple(self._blocks)

    def _is_batch_first(self, block: nn.Module) -> bool:
        return getattr(self._capture.module(self._blocks[block][0]), "batch_first", True)

    def _expects(self, block: nn.Module, of: ForwardPass) -> bool:
        if not (of.gradient or self._calls.trained.isdisjoint(self._blocks[block])):
            return False
        values, names = self._open_values(), [each.name for each in self._statistics[LayerSource.OUTPUT]]
        return values is not None and all(values.expects(site, of, names) for site in self._blocks[block])

    def _receive_outputs(self, blocks: Sequence[nn.Module], states: Tensor) -> None:
        self._compute(LayerSource.OUTPUT, blocks, states, LayerValues.add)

    def _receive_updates(self, blocks: Sequence[nn.Module], entries: tuple[Tensor, Tensor]) -> None:
        self._compute(LayerSource.UPDATE, blocks, entries, LayerValues.put)

    @torch.no_grad()
    def _compute(
        self,
        source: LayerSource,
        blocks: Sequence[nn.Module],
        given: Any,
        keep: Callable[[LayerValues, str, str, Tensor], None],
    ) -> None:
        values = self._open_values()
        if values is None:
            return
        for statistic in tuple(self._statistics[source]):
            for block, value in zip(blocks, self._evaluated(statistic, given, len(blocks)), strict=False):
                for site in self._blocks[block]:
                    keep(values, site, statistic.name, value)

    def _evaluated(self, statistic: LayerStatistic, given: Any, number: int) -> Sequence[Tensor]:
        """Return the value of each block; nothing if the statistic fails, which is left out from then on."""
        try:
            with torch.autocast(_device_type(given), enabled=False):
                return _checked(statistic.values(given), number).unbind()
        except Exception as error:
            self._statistics[statistic.source].remove(statistic)
            described = LayerStatistic.registry.describe(statistic)
            warn(
                f"{described} failed with {type(error).__name__}: {error}. It is no longer computed, and its values "
                "are nan.",
                always=True,
            )
            return ()

    def _guard(self) -> AbstractContextManager[None]:
        return self._non_fatal("layer statistics are no longer recorded", key="layers")


def _weights(block: nn.Module) -> list[Tensor]:
    """Return the parameters of a block; none if some are quantized, since the others are not representative."""
    parameters = [as_real(each.detach()) for each in whole_parameters(block)]
    return parameters if all(each.is_floating_point() for each in parameters) else []


def _gradients(block: nn.Module) -> list[Tensor]:
    gradients = [as_real(each.grad) for each in whole_parameters(block) if each.grad is not None]
    return [] if any(each.is_sparse for each in gradients) else gradients


def _device_type(given: Any) -> str:
    """Return the type of the device of the first tensor."""
    return given.device.type if isinstance(given, Tensor) else _device_type(given[0])


def _checked(values: object, number: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (number,):
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"`values` must return a tensor with one number for each block, [{number}], got {got}")
    return values
