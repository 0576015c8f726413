"""Criterion "random", which keeps random tokens."""

from torch import Tensor

from attnwatch.plugins import register
from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.criteria.base import TokenCriterion


@register
class Random(TokenCriterion):
    """Uniform random numbers, the baseline for all other criteria."""

    name = "random"

    def scores(self, batch: TokenBatch) -> Tensor:
        return batch.noise()
