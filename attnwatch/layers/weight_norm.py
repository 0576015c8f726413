"""Norm of the parameters of a block."""

from collections.abc import Sequence

from torch import Tensor

from attnwatch.layers.base import LayerSource, LayerStatistic, norms
from attnwatch.plugins import register


@register
class WeightNorm(LayerStatistic):
    name = "weight_norm"
    summary = "norm of the block's parameters"
    formula = "‖W‖₂ over all parameters"
    source = LayerSource.WEIGHTS

    def values(self, blocks: Sequence[Sequence[Tensor]]) -> Tensor:
        return norms(blocks)
