"""Norm of the gradients of a block."""

from collections.abc import Sequence

from torch import Tensor

from attnwatch.layers.base import LayerSource, LayerStatistic, norms
from attnwatch.plugins import register


@register
class GradientNorm(LayerStatistic):
    name = "gradient_norm"
    summary = "norm of the gradients of the block's parameters"
    formula = "‖∇W‖₂ over all parameters that have a gradient"
    source = LayerSource.GRADIENTS

    def values(self, blocks: Sequence[Sequence[Tensor]]) -> Tensor:
        return norms(blocks)
