"""Watch attention during training. See the README for the ways to use it."""

from attnwatch.diagnosis import Diagnosis, Finding, FindingKind, RunStatus, Thresholds, diagnose
from attnwatch.errors import AttnwatchError, AttnwatchWarning, ConfigurationError, NoAttentionError
from attnwatch.metrics import AttentionStatistics, attention_entropy, attention_statistics
from attnwatch.recorder import AttentionHistory, AttentionRecorder

__version__ = "0.1.0"

__all__ = [
    "AttentionHistory",
    "AttentionRecorder",
    "AttentionStatistics",
    "AttnwatchError",
    "AttnwatchWarning",
    "ConfigurationError",
    "Diagnosis",
    "Finding",
    "FindingKind",
    "NoAttentionError",
    "RunStatus",
    "Thresholds",
    "attention_entropy",
    "attention_statistics",
    "diagnose",
]
