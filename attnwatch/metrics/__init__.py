"""Pure maths on tensors: entropy and the other statistics of attention, from query and key alone."""

from attnwatch.metrics.accumulate import MAXIMA, accumulate, means_of_sums, merge
from attnwatch.metrics.declaration import STATISTICS, AttentionStatistics, Reduction, Statistic
from attnwatch.metrics.entropy import attention_entropy
from attnwatch.metrics.inputs import HIDDEN_AT, AttentionInputs
from attnwatch.metrics.received import attention_received, attention_weights
from attnwatch.metrics.sampling import stratified_rows
from attnwatch.metrics.statistics import attention_statistics

__all__ = [
    "HIDDEN_AT",
    "MAXIMA",
    "STATISTICS",
    "AttentionInputs",
    "AttentionStatistics",
    "Reduction",
    "Statistic",
    "accumulate",
    "attention_entropy",
    "attention_received",
    "attention_statistics",
    "attention_weights",
    "means_of_sums",
    "merge",
    "stratified_rows",
]
