"""Entropy of uniform attention."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class MaxEntropy(Statistic):
    name = "max_entropy"
    summary = "entropy that uniform attention would have"
    formula = "log n"
    unit = "nats"
    low = 0.0
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.max_entropy
