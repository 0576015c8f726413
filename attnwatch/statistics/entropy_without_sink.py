"""Entropy of attention beside the sink."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class EntropyWithoutSink(Statistic):
    name = "entropy_without_sink"
    summary = "entropy of the weights on all keys but the first visible one"
    formula = "H(p_j / (1 - p_first), j ≠ first)"
    unit = "nats"
    low = 0.0
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.entropy_without_sink
