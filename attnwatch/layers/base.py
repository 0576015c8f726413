"""Declaration of a layer statistic, which determines its recording, curves and documentation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry


class LayerSource(Enum):
    """Tensors of the blocks from which a layer statistic is computed."""

    WEIGHTS = "the parameters before the optimizer's step"
    GRADIENTS = "the gradients before the optimizer's step"
    UPDATE = "entries of the parameters before and after the optimizer's step"
    OUTPUT = "tokens of the block's output"


class LayerStatistic(Plugin, ABC):
    """Base class of the layer statistics: one number for each block that contains attention.

    A layer statistic is a column [steps, sites] of a history, a curve for each layer on dashboards, and a row in the
    documentation. Set `name`, `summary`, `formula` and `source`, and implement `values`. It reads tensors that the
    training run already has in the observed steps, so nothing is recomputed for it.

    Attributes:
        name: key in `AttentionHistory.layers` and in files.
        summary: one-line description.
        formula: formula of the number from the tensors of the block.
        unit: unit of the values; empty if they have none.
        source: tensors that `values` receives.

    Example:
        >>> import attnwatch, torch
        >>> class LargestState(attnwatch.LayerStatistic):
        ...     name, summary, formula = "largest_state", "largest absolute number in the output", "max |x|"
        ...     source = attnwatch.LayerSource.OUTPUT
        ...
        ...     def values(self, blocks):
        ...         return blocks.abs().amax((1, 2, 3))
        >>> attnwatch.register(LargestState)
        <class '...LargestState'>
        >>> model = torch.nn.TransformerEncoderLayer(d_model=32, nhead=4, batch_first=True)
        >>> with attnwatch.AttentionRecorder(model) as recorder:
        ...     with recorder.step(0):
        ...         output = model(torch.randn(2, 16, 32))
        >>> recorder.history()["largest_state"].shape  # [steps, sites]
        (1, 1)
        >>> attnwatch.unregister(LargestState)
    """

    registry: ClassVar[Registry["LayerStatistic"]] = Registry("layer statistic", "attnwatch.layers", as_instances=True)

    summary: str
    formula: str
    unit: str = ""
    source: LayerSource

    @abstractmethod
    def values(self, blocks: Any) -> Tensor:
        """Return the number of each block, [blocks], computed on the device without reading it.

        All blocks are passed in one call so that a GPU launches few kernels. Autograd and autocast are off.

        Args:
            blocks: for `LayerSource.WEIGHTS` and `LayerSource.GRADIENTS` a list of tensors for each block; for
                `LayerSource.UPDATE` the pair (before, after), each float32 [blocks, entries], evenly spaced entries of
                all trained parameters; for `LayerSource.OUTPUT` float32 [blocks, sequences, tokens, features],
                evenly spaced sequences and tokens of the batch. Padding is unknown, so it may be among the tokens.
        """

    def tag(self, layer: str) -> str:
        """Return the name of the curve of a layer on dashboards."""
        return f"layers_{self.name}/{layer}"

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` if a part of the declaration is missing or of the wrong type."""
        cls.registry.require_texts(plugin, "summary", "formula", "unit")
        source = getattr(plugin, "source", None)
        if not isinstance(source, LayerSource):
            raise ConfigurationError(
                f"{cls.registry.describe(plugin)} must have a `source` of attnwatch.LayerSource, got {source!r}."
            )


def norms(blocks: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the joint Euclidean norm of all tensors of each block, float32 [blocks]."""
    tensors = [tensor for block in blocks for tensor in block]
    if all(each.device.type == "cpu" and each.dtype == torch.float32 and each.is_contiguous() for each in tensors):
        flat = [each.view(-1) for each in tensors]
        squares = torch.stack([torch.dot(each, each) for each in flat])  # takes half the time of a norm
        return torch.stack([of_block.sum() for of_block in squares.split(list(map(len, blocks)))]).sqrt()
    each = torch.stack(torch._foreach_norm(tensors, 2, torch.float32))
    return torch.stack([of_block.norm() for of_block in each.split(list(map(len, blocks)))])
