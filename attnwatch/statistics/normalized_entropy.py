"""Entropy of attention, relative to uniform attention."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class NormalizedEntropy(Statistic):
    name = "normalized_entropy"
    summary = "entropy relative to uniform attention (1: uniform, 0: one key)"
    formula = "H / log n"
    low, high = 0.0, 1.0
    per_layer = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.entropy / rows.max_entropy
