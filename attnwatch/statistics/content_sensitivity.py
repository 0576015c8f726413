"""Dependence of the attention pattern on the content."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class ContentSensitivity(Statistic):
    name = "content_sensitivity"
    summary = "how much the pattern differs between the sequences of a batch (0: content is ignored)"
    formula = "H(mean_b p) - mean_b H(p)"
    unit = "nats"
    low = 0.0
    per_layer = True
    chart_limits = (0.0, 1.0)
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.content_sensitivity

    def counts(self, rows: AttentionRows) -> Tensor:
        return rows.comparable
