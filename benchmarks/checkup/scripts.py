"""A training script as a value, and its first steps with a checkup."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from attnwatch import Finding, TrainingCheckup
from benchmarks.checkup.data import Batch, Batches

STEPS, RATE = 12, 1e-3
_FIRST_TENTH, _RUN = 56, 500
Prepare = Callable[[nn.Module], nn.Module | None]
MakeOptimizers = Callable[[nn.Module], Sequence[Optimizer]]
Hook = Callable[[nn.Module, Sequence[Optimizer], int], None]


def adamw(rate: float = RATE, **options: float | bool) -> MakeOptimizers:
    """Return AdamW with all parameters that have gradients."""
    return lambda model: [AdamW([each for each in model.parameters() if each.requires_grad], rate, **options)]


_default_optimizers = adamw()


def _whole(model: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[nn.Module, Sequence[Optimizer]]:
    return model, optimizers


@dataclass(frozen=True)
class Script:
    """A training.

    Attributes:
        build: makes the model.
        batches: makes the endless batches of a seed.
        loss: of the model and a batch.
        optimizers: are made of the prepared model.
        prepare: changes of the new model, in turn; each may return another one.
        prepare_late: changes of the model after the optimizers were made.
        schedule: factor of the rates at an optimizer step.
        clip: largest norm of the gradient; None does not clip.
        accumulate: batches of an optimizer step.
        counts_batches: the checkup is given the number of the batch, as by `enumerate`.
        clear: when gradients are cleared.
        autocast: dtype of autocast; None does without.
        mode: the model's, at an optimizer step; None leaves it as it is.
        steps_per_epoch: told to the checkup.
        before_step, after_step: called around an optimizer step.
        watched: what of the model and the optimizers is given to the checkup.
        steps: optimizer steps that are made.
        total_steps: optimizer steps of the run, told to the checkup.
    """

    build: Callable[[], nn.Module]
    batches: Batches
    loss: Callable[[nn.Module, Batch], Tensor]
    optimizers: MakeOptimizers = _default_optimizers
    prepare: tuple[Prepare, ...] = ()
    prepare_late: tuple[Prepare, ...] = ()
    schedule: Callable[[int], float] = lambda step: 1.0
    clip: float | None = None
    accumulate: int = 1
    counts_batches: bool = False
    clear: Literal["before", "after", "after_to_zero", "between", "never"] = "after"
    autocast: torch.dtype | None = None
    mode: Callable[[int], bool | None] = lambda step: True
    steps_per_epoch: int | None = None
    before_step: Hook = lambda model, optimizers, step: None
    after_step: Hook = lambda model, optimizers, step: None
    watched: Callable[..., tuple[nn.Module, Sequence[Optimizer]]] = _whole
    steps: int = STEPS
    total_steps: int | None = None


def is_whole(script: Script) -> bool:
    """Return whether the whole model and all optimizers are given to the checkup."""
    return script.watched is _whole


Change = Callable[[Script], Script]
Part = Literal["tuned-on", "blind-1", "blind-2", "blind-3", "blind-4", "blind-5"]


@dataclass(frozen=True)
class Case:
    """A script under a name.

    Attributes:
        name: of the fault or of what is odd.
        architecture: of the model.
        script: the training.
        kinds: findings that name the fault, its cause first; empty if the script is sound.
        part: when it was written; those who wrote the blind parts had not read the checks.
        is_deliberate: the script does on purpose what a finding would say, such as gradient ascent to unlearn.
    """

    name: str
    architecture: str
    script: Script
    kinds: tuple[str, ...] = ()
    part: Part = "tuned-on"
    is_deliberate: bool = False


@dataclass(frozen=True)
class Trained:
    """Loss of each step, seconds of each step, and the error that ended the training."""

    losses: list[float]
    step_seconds: list[float]
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """Findings of a checkup, reasons why checks were left out, and the training itself."""

    findings: list[Finding]
    skipped: dict[str, str]
    trained: Trained


InStep = Callable[[int], contextlib.AbstractContextManager[object]]
"""Function of the number of a step that returns the context of its forward and backward."""
Observe = Callable[[nn.Module, Sequence[Optimizer]], contextlib.AbstractContextManager[InStep]]
"""Function of model and optimizers that returns the context of a training."""


def changed(script: Script, **functions: object) -> Script:
    """Return the script with fields replaced; `prepare` and `prepare_late` are added to those that it has."""
    for name in ("prepare", "prepare_late"):
        if name in functions:
            functions[name] = (*getattr(script, name), functions[name])
    return replace(script, **functions)


def first_tenth(script: Script) -> Script:
    """Return the script with the first tenth of a run, after which a model should have begun to learn."""
    return replace(script, steps=_FIRST_TENTH, total_steps=_RUN)


def each_batch(script: Script, change: Callable[[Batch], Batch]) -> Script:
    """Return the script with all batches changed."""
    return replace(script, batches=lambda seed: map(change, script.batches(seed)))


def run(script: Script, *, seed: int = 0) -> Outcome:
    """Train for the script's steps with a checkup."""
    checkups: list[TrainingCheckup] = []

    @contextlib.contextmanager
    def observe(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[InStep]:
        told = {"steps_per_epoch": script.steps_per_epoch, "total_steps": script.total_steps}
        with TrainingCheckup(model, optimizers=optimizers, **told) as checkup:
            checkups.append(checkup)
            yield checkup.step

    trained = train(script, observe, seed=seed)
    return Outcome(checkups[0].findings, dict(checkups[0].skipped), trained)


@contextlib.contextmanager
def unobserved(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[InStep]:
    """Look at nothing."""
    yield lambda step: contextlib.nullcontext()


def built(script: Script, seed: int) -> tuple[nn.Module, list[Optimizer]]:
    """Return the prepared model and its optimizers, before the late changes."""
    torch.manual_seed(seed)
    model = script.build()
    for prepare in script.prepare:
        model = prepare(model) or model
    return model, list(script.optimizers(model))


def train(script: Script, observe: Observe = unobserved, *, seed: int = 0) -> Trained:
    """Train for the script's steps; what the script raises ends it and is told."""
    model, optimizers = built(script, seed)
    for prepare in script.prepare_late:
        model = prepare(model) or model
    first_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    batches, numbers = script.batches(seed), itertools.count()
    losses: list[float] = []
    seconds: list[float] = []
    error = ""
    with observe(*script.watched(model, optimizers)) as in_step:
        for step in range(script.steps):
            begin = time.perf_counter()
            _begin_step(script, model, optimizers, first_rates, step)
            try:
                parts = []
                for _ in range(script.accumulate):
                    number = next(numbers)
                    with in_step(number if script.counts_batches else step):
                        parts.append(_forward_and_backward(script, model, next(batches)))
                _update(script, model, optimizers)
                script.after_step(model, optimizers, step)
            except Exception as raised:  # the training is over, and what was found until then counts
                error = f"{type(raised).__name__}: {raised}"
                break
            losses.append(sum(parts) / len(parts))
            seconds.append(time.perf_counter() - begin)
    return Trained(losses, seconds, error)


def _begin_step(
    script: Script, model: nn.Module, optimizers: Sequence[Optimizer], first_rates: list[list[float]], step: int
) -> None:
    mode = script.mode(step)
    if mode is not None:
        model.train(mode)
    for optimizer, rates in zip(optimizers, first_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * script.schedule(step)
    script.before_step(model, optimizers, step)
    if script.clear == "before":
        _clear(optimizers)


def _forward_and_backward(script: Script, model: nn.Module, batch: Batch) -> float:
    with _autocast(script.autocast):
        loss = script.loss(model, batch)
    (loss / script.accumulate).backward()
    return loss.item()


def _autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _update(script: Script, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    if script.clear == "between":
        _clear(optimizers)
    if script.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), script.clip)
    for optimizer in optimizers:
        optimizer.step()
    if script.clear.startswith("after"):
        _clear(optimizers, set_to_none=script.clear == "after")


def _clear(optimizers: Sequence[Optimizer], *, set_to_none: bool = True) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=set_to_none)


def circle(batches: Batches, count: int) -> Batches:
    """Return the first batches over and over."""

    def repeated(seed: int) -> Iterator[Batch]:
        return itertools.cycle(list(itertools.islice(batches(seed), count)))

    return repeated
