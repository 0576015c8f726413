"""Trainers, one file or package each: what a trainer's `TrainerRun` is, and when it calls the parts of callbacks."""

from attnwatch.trainers.base import TrainerAdapter, TrainerRun
from attnwatch.trainers.callback import PartCallback

__all__ = ["PartCallback", "TrainerAdapter", "TrainerRun"]
