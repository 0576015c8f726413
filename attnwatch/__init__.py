"""Watch attention during training, and remove what it does without. See the README for the ways to use it."""

from attnwatch.attention import AttentionStatistics, attention_entropy, attention_statistics
from attnwatch.diagnosis import Diagnosis, Finding, FindingKind, RiskModel, RunStatus, Thresholds, diagnose
from attnwatch.errors import AttnwatchError, AttnwatchWarning, ConfigurationError, NoAttentionError
from attnwatch.heads import (
    Guard,
    HeadImportance,
    HeadLayout,
    PruningPlan,
    accept_pruned_state,
    check_layout,
    choose_heads,
    head_importance,
    load_pruned,
    prune_heads,
    register_layout,
    save_pruned,
    savings,
)
from attnwatch.loggers import Logger
from attnwatch.plugins import register, unregister
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.tokens import KeepSchedule, TokenBatch, TokenDropper, TokenLayout, register_token_layout
from attnwatch.trainers import PartCallback, TrainerAdapter, TrainerRun

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
    "Guard",
    "HeadImportance",
    "HeadLayout",
    "KeepSchedule",
    "Logger",
    "NoAttentionError",
    "PartCallback",
    "PruningPlan",
    "RiskModel",
    "RunStatus",
    "Thresholds",
    "TokenBatch",
    "TokenDropper",
    "TokenLayout",
    "TrainerAdapter",
    "TrainerRun",
    "accept_pruned_state",
    "attention_entropy",
    "attention_statistics",
    "check_layout",
    "choose_heads",
    "diagnose",
    "head_importance",
    "load_pruned",
    "prune_heads",
    "register",
    "register_layout",
    "register_token_layout",
    "save_pruned",
    "savings",
    "unregister",
]
