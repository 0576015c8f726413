"""Pure maths on tensors: entropy and the other statistics of attention, from query and key alone."""

from attnwatch.metrics.accumulate import MAXIMA, accumulate, means_of_sums, merge
from attnwatch.metrics.declaration import STATISTICS, AttentionStatistics, Reduction, Statistic
from attnwatch.metrics.entropy import attention_entropy
from attnwatch.metrics.identity import Identity
from attnwatch.metrics.inputs import HIDDEN_AT, AttentionInputs
from attnwatch.metrics.joining import at_rows, joined, kind_of_call
from attnwatch.metrics.received import attention_received, attention_weights
from attnwatch.metrics.sampling import block_elements, stratified_rows
from attnwatch.metrics.statistics import attention_statistics

__all__ = [
    "HIDDEN_AT",
    "MAXIMA",
    "STATISTICS",
    "AttentionInputs",
    "AttentionStatistics",
    "Identity",
    "Reduction",
    "Statistic",
    "accumulate",
    "at_rows",
    "attention_entropy",
    "attention_received",
    "attention_statistics",
    "attention_weights",
    "block_elements",
    "joined",
    "kind_of_call",
    "means_of_sums",
    "merge",
    "stratified_rows",
]
