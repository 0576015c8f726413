"""Watch attention during training. See the README for the three ways to use it."""

from attnwatch.errors import AttnwatchError, AttnwatchWarning, ConfigurationError, NoAttentionError
from attnwatch.metrics import AttentionStatistics, attention_entropy, attention_statistics

__version__ = "0.1.0"

__all__ = [
    "AttentionStatistics",
    "AttnwatchError",
    "AttnwatchWarning",
    "ConfigurationError",
    "NoAttentionError",
    "attention_entropy",
    "attention_statistics",
]
