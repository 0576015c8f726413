"""Watch attention during training, and remove what it does without. See the README for the ways to use it."""

from attnwatch.attention import AttentionRows, AttentionStatistics, attention_entropy, attention_statistics
from attnwatch.capture import AttentionCall, FunctionCall
from attnwatch.checkup import CannotCheck, Check, Fault, StepEvidence, TrainingCheckup, check_training
from attnwatch.diagnosis import (
    Cause,
    CauseRule,
    Clue,
    Diagnosis,
    Finding,
    FindingKind,
    FindingRule,
    RiskModel,
    RunStatus,
    Thresholds,
    diagnose,
)
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
from attnwatch.layers import LayerSource, LayerStatistic
from attnwatch.loggers import Logger
from attnwatch.models import ModelFamily, Refused
from attnwatch.plugins import register, unregister
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.runs import RunReader, RunRecord, read_run
from attnwatch.schedules import Schedule
from attnwatch.statistics import Statistic
from attnwatch.tokens import KeepSchedule, TokenBatch, TokenCriterion, TokenDropper, TokenLayout
from attnwatch.trainers import PartCallback, TrainerAdapter, TrainerRun

__version__ = "0.1.0"

__all__ = [
    "AttentionCall",
    "AttentionHistory",
    "AttentionRecorder",
    "AttentionRows",
    "AttentionStatistics",
    "AttnwatchError",
    "AttnwatchWarning",
    "CannotCheck",
    "Cause",
    "CauseRule",
    "Check",
    "Clue",
    "ConfigurationError",
    "Diagnosis",
    "Fault",
    "Finding",
    "FindingKind",
    "FindingRule",
    "FunctionCall",
    "Guard",
    "HeadCriterion",
    "HeadData",
    "HeadImportance",
    "HeadLayout",
    "KeepSchedule",
    "LayerSource",
    "LayerStatistic",
    "Logger",
    "ModelFamily",
    "NoAttentionError",
    "PartCallback",
    "PruningPlan",
    "Refused",
    "RiskModel",
    "RunReader",
    "RunRecord",
    "RunStatus",
    "Schedule",
    "Statistic",
    "StepEvidence",
    "Thresholds",
    "TokenBatch",
    "TokenCriterion",
    "TokenDropper",
    "TokenLayout",
    "TrainerAdapter",
    "TrainerRun",
    "TrainingCheckup",
    "accept_pruned_state",
    "attention_entropy",
    "attention_statistics",
    "check_layout",
    "check_training",
    "choose_heads",
    "diagnose",
    "head_importance",
    "load_pruned",
    "prune_heads",
    "read_run",
    "register",
    "save_pruned",
    "savings",
    "unregister",
]
