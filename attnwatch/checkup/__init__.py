"""Checkup of the first steps of a training run: faults found by facts and interventions."""

from attnwatch.checkup.checks.base import Check, Fault
from attnwatch.checkup.checkup import TrainingCheckup
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import CannotCheck
from attnwatch.checkup.single_step import check_training

__all__ = ["CannotCheck", "Check", "Fault", "StepEvidence", "TrainingCheckup", "check_training"]
