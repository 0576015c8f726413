"""Training of a small model by a recipe."""

import contextlib
import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from attnwatch import AttentionRecorder
from benchmarks.verdicts.faults import FAULTS, SOUND, Setup
from benchmarks.verdicts.runs import Recipe, Run
from benchmarks.verdicts.tasks import IGNORED, Batch, Task

OBSERVATIONS = 100
_MEASURED = 512  # sequences
_LOST = 40  # steps without a finite loss


class Training:
    """Training by a recipe, step by step; it depends on the recipe and the task alone.

    Args:
        recipe: specification of the run.
        task: task of the recipe.

    Attributes:
        model: model that is trained.
        optimizer: optimizer that trains it.
        setup: options of the recipe.
        losses, gradient_norms: of each step so far.
    """

    def __init__(self, recipe: Recipe, task: Task):
        torch.manual_seed(recipe.seed)
        setup = SOUND[recipe.setting](Setup(task.learning_rate, task.batch_size))
        self.setup = setup = FAULTS[recipe.fault](setup) if recipe.fault else setup
        self.model = model = task.architectures[recipe.architecture]()
        setup.prepare(model)
        if setup.half:
            model.half()
        parameters = model.named_parameters()
        self._trained = [p for name, p in parameters if not (setup.left_out and re.search(setup.left_out, name))]
        self.optimizer = torch.optim.AdamW(
            self._trained, lr=setup.learning_rate, weight_decay=setup.weight_decay, betas=setup.betas
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(1.0, (step + 1) / max(setup.warm_up * task.steps, 1)) * setup.schedule(step / task.steps),
        )
        self._task, self._generator = task, torch.Generator().manual_seed(recipe.seed)
        self._first = task.batch(setup.batch_size, self._generator, True)
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []

    @property
    def is_lost(self) -> bool:
        """True if the last losses are not finite."""
        return len(self.losses) >= _LOST and not np.isfinite(self.losses[-_LOST:]).any()

    def step(
        self,
        watching: contextlib.AbstractContextManager[None],
        see_loss: Callable[[Tensor], None] = lambda loss: None,
    ) -> None:
        """Train one step.

        Args:
            watching: context of the forward and backward.
            see_loss: called with the loss before the backward.
        """
        setup = self.setup
        batch = self._first if setup.one_batch else self._task.batch(setup.batch_size, self._generator, True)
        with watching:
            loss = _loss(self.model, setup.corrupt(batch))
            see_loss(loss)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self._trained, setup.clip or float("inf"))
        self.optimizer.step()
        self._schedule.step()
        self.losses.append(loss.item())
        self.gradient_norms.append(norm.item())


def train(recipe: Recipe, task: Task) -> Run:
    """Train a model to the end of its budget."""
    training = Training(recipe, task)
    gap = max(1, task.steps // OBSERVATIONS)
    with AttentionRecorder(training.model, every_n_steps=gap, optimizers=training.optimizer) as recorder:
        for step in range(task.steps):
            training.step(recorder.step(step), recorder.record_loss)
            if training.is_lost:
                break
        history = recorder.history()
    quality, chance = _measure(training.model, task, training.setup)
    return Run(recipe, history, training.losses, training.gradient_norms, task.steps, quality, chance)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**_as(model, batch)).loss.float()


def _as(model: nn.Module, batch: Batch) -> Batch:
    """Return the batch with floating-point inputs in the model's precision."""
    dtype = next(model.parameters()).dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


@torch.no_grad()
def _measure(model: nn.Module, task: Task, setup: Setup) -> tuple[float, float]:
    """Return the accuracy on data that the run has not seen, and that of the most frequent label there."""
    model.eval()
    generator = torch.Generator().manual_seed(1234)
    right, labels = [], []
    for _ in range(_MEASURED // task.batch_size):
        batch = task.batch(task.batch_size, generator, False)
        logits = model(**_as(model, {**setup.corrupt(batch), "labels": batch["labels"]})).logits
        truth = batch["labels"]
        if truth.ndim == 2:  # the logits of a token are about the next one
            logits, truth = logits[:, :-1], truth[:, 1:]
        counts = truth != IGNORED
        right.append((logits.argmax(-1) == truth)[counts])
        labels.append(truth[counts])
    labels = torch.cat(labels)
    return torch.cat(right).float().mean().item(), labels.bincount().max().item() / len(labels)
