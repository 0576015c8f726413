"""Pure tensor maths: entropy and other attention statistics from query and key alone."""

from attnwatch.attention.accumulate import Accumulator
from attnwatch.attention.entropy import attention_entropy
from attnwatch.attention.identity import Identity
from attnwatch.attention.inputs import HIDDEN_AT, AttentionInputs
from attnwatch.attention.joining import at_rows, joined, kind_of_call
from attnwatch.attention.received import attention_received, attention_weights
from attnwatch.attention.rows import AttentionRows
from attnwatch.attention.sampling import block_elements, stratified_rows
from attnwatch.attention.summary import AttentionStatistics, attention_statistics

__all__ = [
    "HIDDEN_AT",
    "Accumulator",
    "AttentionInputs",
    "AttentionRows",
    "AttentionStatistics",
    "Identity",
    "at_rows",
    "attention_entropy",
    "attention_received",
    "attention_statistics",
    "attention_weights",
    "block_elements",
    "joined",
    "kind_of_call",
    "stratified_rows",
]
