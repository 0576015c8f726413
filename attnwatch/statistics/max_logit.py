"""Largest attention logit."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Reduction, Statistic


@register
class MaxLogit(Statistic):
    name = "max_logit"
    summary = "largest attention logit in the rows that were looked at"
    formula = "max_j z_j"
    reduction = Reduction.MAX
    per_layer = True
    chart_limits = (0.0, 100.0)
    chart_is_logarithmic = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.max_logit
