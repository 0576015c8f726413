"""Largest attention weight."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class MaxWeight(Statistic):
    name = "max_weight"
    summary = "largest attention weight of a row (the confidence of a head in arXiv 1905.09418)"
    formula = "max_j p_j"
    low, high = 0.0, 1.0
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.max_weight
