"""Criterion by the entropy of the attention weights."""

from torch import Tensor

from attnwatch.heads.criteria.base import HeadCriterion, HeadData
from attnwatch.plugins import register


@register
class Entropy(HeadCriterion):
    """1 - normalized entropy: heads with diffuse attention are removed first."""

    name = "entropy"
    reads = ("normalized_entropy",)

    def scores(self, data: HeadData) -> Tensor:
        return 1 - data["normalized_entropy"]
