"""Standard error of the normalized entropy, from sampling query rows."""

from torch import Tensor

from attnwatch.attention.rows import AttentionRows
from attnwatch.plugins import register
from attnwatch.statistics.base import Reduction, Statistic


@register
class NormalizedEntropyStandardError(Statistic):
    name = "normalized_entropy_stderr"
    summary = "standard error of normalized_entropy as the mean over all Q query rows, from looking at R of them"
    formula = "sqrt((1 - R/Q) · Σ_r (e_{r+1} - e_r)² · R / (2(R - 1))) / Σ_r w_r"
    low = 0.0
    reduction = Reduction.STANDARD_ERROR
    is_detail = True

    def values(self, rows: AttentionRows) -> Tensor:
        return rows.entropy / rows.max_entropy
