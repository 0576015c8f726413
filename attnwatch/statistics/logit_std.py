"""Spread of the attention logits."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class LogitStd(Statistic):
    name = "logit_std"
    summary = "spread of the logits of a row (0: uniform attention)"
    formula = "std_j z_j"
    low = 0.0
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.logit_std
