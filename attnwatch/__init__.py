"""Watch attention during training, and remove what it does without. See the README for the ways to use it."""

from attnwatch.attention import AttentionRows, AttentionStatistics, attention_entropy, attention_statistics
from attnwatch.diagnosis import Diagnosis, Finding, FindingKind, RiskModel, RunStatus, Thresholds, diagnose
from attnwatch.errors import AttnwatchError, AttnwatchWarning, ConfigurationError, NoAttentionError
from attnwatch.heads import (
    Guard,
    HeadCriterion,
    HeadData,
    HeadImportance,
    HeadLayout,
    PruningPlan,
    accept_pruned_state,
    check_layout,
    choose_heads,
    head_importance,
    load_pruned,
    prune_heads,
    save_pruned,
    savings,
)
from attnwatch.models import ModelFamily, Refused
from attnwatch.plugins import register, unregister
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.schedules import Schedule
from attnwatch.statistics import Statistic
from attnwatch.tokens import KeepSchedule, TokenBatch, TokenDropper, TokenLayout, register_token_layout

__version__ = "0.1.0"

__all__ = [
    "AttentionHistory",
    "AttentionRecorder",
    "AttentionRows",
    "AttentionStatistics",
    "AttnwatchError",
    "AttnwatchWarning",
    "ConfigurationError",
    "Diagnosis",
    "Finding",
    "FindingKind",
    "Guard",
    "HeadCriterion",
    "HeadData",
    "HeadImportance",
    "HeadLayout",
    "KeepSchedule",
    "ModelFamily",
    "NoAttentionError",
    "PruningPlan",
    "Refused",
    "RiskModel",
    "RunStatus",
    "Schedule",
    "Statistic",
    "Thresholds",
    "TokenBatch",
    "TokenDropper",
    "TokenLayout",
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
    "register_token_layout",
    "save_pruned",
    "savings",
    "unregister",
]
