"""Kurtosis of the features that a block returns, a measure of outlier features."""

from torch import Tensor

from attnwatch.layers.base import LayerSource, LayerStatistic
from attnwatch.plugins import register


@register
class OutputKurtosis(LayerStatistic):
    """Kurtosis of the root mean squares of the features.

    It is 1 if all features are equally large, and the number of features if all except one are zero. The definition is
    from He et al., "Understanding and Minimising Outlier Features in Neural Network Training" (2024). With n sampled
    tokens, independent Gaussian features have a kurtosis of 1 + 2 / n.
    """

    name = "output_kurtosis"
    summary = "kurtosis of the features in the block's output (1: all are equally large)"
    formula = "mean_f s_f⁴ / (mean_f s_f²)² with s_f² = mean_t x_tf²"
    source = LayerSource.OUTPUT

    def values(self, blocks: Tensor) -> Tensor:
        squares = blocks.square().mean((1, 2))
        return squares.square().mean(-1) / squares.mean(-1).square()
