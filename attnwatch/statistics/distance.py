"""Distance of attention, in tokens."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class Distance(Statistic):
    name = "distance"
    summary = "mean distance between a query and the keys it attends to"
    formula = "Σ_j p_j |i - j|"
    unit = "tokens"
    low = 0.0
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.distance

    def counts(self, rows: AttentionRows) -> Tensor:
        return rows.valid & rows.inputs.has_positions
