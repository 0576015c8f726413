"""Training of a script of `benchmarks.checkup`, and the history that a recorder makes of it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from attnwatch import AttentionHistory, AttentionRecorder
from benchmarks.checkup.data import Batch
from benchmarks.checkup.scripts import Script, train

STEPS, EVERY = 160, 2


class _Observed:
    """A script whose forwards a recorder watches."""

    def __init__(self, script: Script):
        self._script = script
        self._recorder: AttentionRecorder | None = None
        self._step = -1

    def as_script(self) -> Script:
        prepares = (*self._script.prepare_late, self._watch)
        return replace(self._script, prepare_late=prepares, before_step=self._count, loss=self._loss, steps=STEPS)

    def history(self) -> AttentionHistory | None:
        """Return what was recorded; None if the model could not be made."""
        if self._recorder is None:
            return None
        self._recorder.close()
        return self._recorder.history()

    def _watch(self, model: nn.Module) -> None:
        self._recorder = AttentionRecorder(model, every_n_steps=EVERY, total_steps=STEPS)

    def _count(self, model: nn.Module, optimizers: object, step: int) -> None:
        self._step = step
        self._script.before_step(model, optimizers, step)

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert self._recorder is not None
        with self._recorder.step(self._step):
            loss = self._script.loss(model, batch)
            self._recorder.record_loss(loss)
        return loss


def observed(script: Script, seed: int) -> AttentionHistory | None:
    """Return the history of a training; None if there was none."""
    watched = _Observed(script)
    torch.set_num_threads(1)
    train(watched.as_script(), seed=seed)
    return watched.history()
