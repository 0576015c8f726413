"""Criterion "attention", which keeps tokens that receive much attention in the preceding layer."""

from torch import Tensor

from attnwatch.plugins import register
from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.criteria.base import TokenCriterion


@register
class Attention(TokenCriterion):
    """Attention that a token receives from the queries of the preceding layer, relative to uniform attention."""

    name = "attention"
    reads = ("attention",)

    def scores(self, batch: TokenBatch) -> Tensor:
        return batch.attention
