"""Training of a small model by a recipe."""

import re

import numpy as np
import torch
from torch import nn

from attnwatch import AttentionRecorder
from benchmarks.verdicts.faults import FAULTS, SOUND, Setup
from benchmarks.verdicts.runs import Recipe, Run
from benchmarks.verdicts.tasks import IGNORED, Batch, Task

OBSERVATIONS = 100
_MEASURED = 512  # sequences
_LOST = 40  # steps without a finite loss


def train(recipe: Recipe, task: Task) -> Run:
    """Train a model; the run depends on the recipe and the task alone."""
    torch.manual_seed(recipe.seed)
    setup = SOUND[recipe.setting](Setup(task.learning_rate, task.batch_size))
    setup = FAULTS[recipe.fault](setup) if recipe.fault else setup
    model = task.architectures[recipe.architecture]()
    setup.prepare(model)
    if setup.half:
        model.half()
    trained = [p for name, p in model.named_parameters() if not (setup.left_out and re.search(setup.left_out, name))]
    optimizer = torch.optim.AdamW(trained, lr=setup.learning_rate, weight_decay=setup.weight_decay, betas=setup.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / max(setup.warm_up * task.steps, 1)) * setup.schedule(step / task.steps),
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    losses, norms = [], []
    first = task.batch(setup.batch_size, generator, True)
    with AttentionRecorder(model, every_n_steps=max(1, task.steps // OBSERVATIONS)) as recorder:
        for step in range(task.steps):
            batch = first if setup.one_batch else task.batch(setup.batch_size, generator, True)
            with recorder.step(step):
                loss = _loss(model, setup.corrupt(batch))
                recorder.record_loss(loss)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, setup.clip or float("inf"))
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            norms.append(norm.item())
            if len(losses) >= _LOST and not np.isfinite(losses[-_LOST:]).any():
                break
        history = recorder.history()
    quality, chance = _measure(model, task, setup)
    return Run(recipe, history, losses, norms, task.steps, quality, chance)


def _loss(model: nn.Module, batch: Batch) -> torch.Tensor:
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
