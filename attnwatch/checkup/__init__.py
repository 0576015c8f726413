"""Checkup of a training in its first steps: which fault it has, by facts and interventions."""

from attnwatch.checkup.checks.base import Check, Fault
from attnwatch.checkup.checkup import TrainingCheckup, check_training
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import CannotCheck

__all__ = ["CannotCheck", "Check", "Fault", "StepEvidence", "TrainingCheckup", "check_training"]
