"""Criterion "attention": tokens are kept that receive much attention in the layer before."""

from torch import Tensor

from attnwatch.plugins import register
from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.criteria.base import TokenCriterion


@register
class Attention(TokenCriterion):
    """Attention that a token receives from the queries of the layer before, relative to uniform attention."""

    name = "attention"
    reads = ("attention",)

    def scores(self, batch: TokenBatch) -> Tensor:
        return batch.attention
