"""Verdicts on runs; reads a history and nothing else."""

from attnwatch.diagnosis.actions import Action, FindingActions
from attnwatch.diagnosis.causes.base import CauseRule, Clue
from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.diagnose import diagnose
from attnwatch.diagnosis.evidence import Evidence, Symptom, earliest, latest
from attnwatch.diagnosis.findings.base import FindingRule
from attnwatch.diagnosis.kinds import FindingKind
from attnwatch.diagnosis.risk import RiskModel
from attnwatch.diagnosis.rules import RuleSet
from attnwatch.diagnosis.status import RunStatus
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Cause, Diagnosis, Finding

__all__ = [
    "Action",
    "Cause",
    "CauseRule",
    "Clue",
    "Diagnosis",
    "Evidence",
    "Finding",
    "FindingActions",
    "FindingKind",
    "FindingRule",
    "RiskModel",
    "RuleSet",
    "RunCourse",
    "RunStatus",
    "Symptom",
    "Thresholds",
    "diagnose",
    "earliest",
    "latest",
]
