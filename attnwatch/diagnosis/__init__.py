"""Verdicts: reads a history and nothing else."""

from attnwatch.diagnosis.actions import Action, FindingActions
from attnwatch.diagnosis.diagnose import diagnose
from attnwatch.diagnosis.risk import RiskModel
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Diagnosis, Finding, FindingKind, RunStatus

__all__ = [
    "Action",
    "Diagnosis",
    "Finding",
    "FindingActions",
    "FindingKind",
    "RiskModel",
    "RunStatus",
    "Thresholds",
    "diagnose",
]
