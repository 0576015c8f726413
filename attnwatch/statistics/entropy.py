"""Entropy of attention, in nats."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class Entropy(Statistic):
    name = "entropy"
    summary = "entropy of the attention weights"
    formula = "H = -Σ_j p_j log p_j"
    unit = "nats"
    low = 0.0
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.entropy
