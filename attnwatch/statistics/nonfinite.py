"""Share of query rows with logits that are not finite."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Statistic


@register
class NonFinite(Statistic):
    name = "nonfinite"
    summary = "share of rows with a logit that is nan or infinite"
    formula = "any visible z_j is nan or inf"
    low, high = 0.0, 1.0
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return (~rows.is_finite).to(rows.max_logit.dtype)

    def counts(self, rows: AttentionRows) -> Tensor:
        return rows.counts_as_finite
