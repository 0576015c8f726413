"""Optimizer steps of a Lightning run: how many there will be, and when one is complete."""

import math
import time

import lightning.pytorch as pl


def total_steps(trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
    """How far `trainer.global_step` will count; infinite where nothing says so."""
    total = trainer.estimated_stepping_batches
    if total == math.inf or total <= 0:
        return math.inf
    if pl_module.automatic_optimization or trainer.max_steps != -1:
        return total
    return total * len(trainer.optimizers)  # Lightning counts batches then; a step is that of any optimizer


class StepClock:
    """Tells complete optimizer steps from micro-batches, and how long they took."""

    def __init__(self):
        self._step = 0
        self._began: float | None = None

    def start(self, trainer: pl.Trainer) -> None:
        """When training starts: before, a resumed run does not know its step."""
        self._step = trainer.global_step
        self._began = None

    def batch_starts(self) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def batch_ends(self, trainer: pl.Trainer) -> float | None:
        """Seconds that the step took, all its micro-batches; None where it is not complete."""
        if trainer.global_step == self._step:
            return None
        seconds, self._began, self._step = time.perf_counter() - self._began, None, trainer.global_step
        return seconds
