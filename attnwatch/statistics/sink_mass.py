"""Attention weight on the sink."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class SinkMass(Statistic):
    name = "sink_mass"
    summary = "attention weight on the first visible key, and on the sink that a head has learned"
    formula = "p_first"
    low, high = 0.0, 1.0
    per_layer = True
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.sink_mass
