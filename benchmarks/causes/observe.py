"""Training of a script of `benchmarks.checkup`, and the history that a recorder makes of it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch import AttentionHistory, AttentionRecorder
from benchmarks.checkup.data import Batch
from benchmarks.checkup.scripts import InStep, Script, train

STEPS, EVERY = 160, 2


def observed(script: Script, seed: int) -> AttentionHistory | None:
    """Return the history of a training; None if the model could not be made."""
    recorders: list[AttentionRecorder] = []

    @contextlib.contextmanager
    def observe(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[InStep]:
        options = {"every_n_steps": EVERY, "total_steps": STEPS, "optimizers": optimizers}
        with AttentionRecorder(model, **options) as recorder:
            recorders.append(recorder)
            yield recorder.step

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = script.loss(model, batch)
        recorders[0].record_loss(value)
        return value

    torch.set_num_threads(1)
    train(replace(script, loss=loss, steps=STEPS), observe, seed=seed)
    return recorders[0].history() if recorders else None
