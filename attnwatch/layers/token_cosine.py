"""Similarity of the tokens that a block returns, a sign of rank collapse."""

import math

from torch import Tensor
from torch.nn.functional import normalize

from attnwatch.layers.base import LayerSource, LayerStatistic
from attnwatch.plugins import register


@register
class TokenCosine(LayerStatistic):
    """Mean cosine between the states of two tokens of a sequence.

    It is 1 if all tokens are the same up to their norm: rank collapse, as in Dong et al., "Attention is not all you
    need" (2021), and Noci et al., "Signal Propagation in Transformers" (2022).
    """

    name = "token_cosine"
    summary = "mean cosine between the states of two tokens of a sequence (1: rank collapse)"
    formula = "mean over s ≠ t of x_s · x_t / (‖x_s‖ ‖x_t‖)"
    source = LayerSource.OUTPUT

    def values(self, blocks: Tensor) -> Tensor:
        directions, number = normalize(blocks, dim=-1), blocks.shape[2]
        all_pairs = directions.sum(2).square().sum(-1)  # per sequence, including pairs of a token with itself
        with_itself = directions.square().sum((2, 3))
        num_pairs = number * (number - 1) or math.nan
        return ((all_pairs - with_itself) / num_pairs).mean(1)
