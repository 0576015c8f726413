"""Trainers, one file or package each, with a `TrainerRun` and the hooks that call the parts of callbacks."""

from attnwatch.trainers.base import TrainerAdapter, TrainerRun
from attnwatch.trainers.callback import PartCallback

__all__ = ["PartCallback", "TrainerAdapter", "TrainerRun"]
