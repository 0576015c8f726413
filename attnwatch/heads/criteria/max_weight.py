"""Criterion by the largest attention weights."""

from torch import Tensor

from attnwatch.heads.criteria.base import HeadCriterion, HeadData
from attnwatch.plugins import register


@register
class MaxWeight(HeadCriterion):
    """Mean of the largest attention weight of a query row. Voita et al. 2019 (arXiv 1905.09418) call it confidence."""

    name = "max_weight"
    reads = ("max_weight",)

    def scores(self, data: HeadData) -> Tensor:
        return data["max_weight"]
