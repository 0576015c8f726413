"""Criterion by the norm of the output weights."""

from torch import Tensor

from attnwatch.heads.criteria.base import HeadCriterion, HeadData
from attnwatch.plugins import register


@register
class Weight(HeadCriterion):
    """Frobenius norm of the head's columns of the output projection."""

    name = "weight"
    reads = ("weights",)

    def scores(self, data: HeadData) -> Tensor:
        return data["weights"].flatten(1).norm(dim=1)
