"""Norm of the states that a block returns."""

from torch import Tensor

from attnwatch.layers.base import LayerSource, LayerStatistic
from attnwatch.plugins import register


@register
class OutputNorm(LayerStatistic):
    name = "output_norm"
    summary = "norm of a token's state in the block's output, mean over tokens"
    formula = "mean_t ‖x_t‖₂"
    source = LayerSource.OUTPUT

    def values(self, blocks: Tensor) -> Tensor:
        return blocks.norm(dim=-1).mean((1, 2))
