"""Oddities of sound optimizers, schedules and loops of a fourth blind set, for `odd_fourth`."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adamax, AdamW, Optimizer

from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import half
from benchmarks.checkup.fourth import decayed_by_hooks, scaled_loss, unscale, with_pre_hook
from benchmarks.checkup.optimizers import moved_by
from benchmarks.checkup.scripts import Script, adamw

_UP, _STEPS, _RESTART = 4, 40, 5


def by_whole_names(model: nn.Module) -> list[Optimizer]:
    """Keep parameters by their whole names."""
    return [AdamW(dict(model.named_parameters()).values(), 1e-3)]


def of_all_axes(model: nn.Module) -> list[Optimizer]:
    """Let tensors of two axes or more decay, and others not."""
    large = [each for each in model.parameters() if each.ndim > 1]
    small = [each for each in model.parameters() if each.ndim <= 1]
    return [AdamW([{"params": large}, {"params": small, "weight_decay": 0.0}], 1e-3)]


def adamax(model: nn.Module) -> list[Optimizer]:
    """Return Adam with the largest gradient in place of the mean square."""
    return [Adamax(model.parameters(), 2e-3)]


def two_means(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Step by the sum of a fast and a slow mean of gradients, as AdEMAMix does."""
    if parameter.grad is None:
        return
    if not state:
        state |= {"step": 0, "fast": 0 * parameter, "slow": 0 * parameter, "square": 0 * parameter}
    state["step"] += 1
    state["fast"].lerp_(parameter.grad, 0.1)
    state["slow"].lerp_(parameter.grad, 0.001)
    state["square"].lerp_(parameter.grad.square(), 0.001)
    root = (state["square"] / (1 - 0.999 ** state["step"])).sqrt() + 1e-8
    parameter.sub_(rate * (state["fast"] / (1 - 0.9 ** state["step"]) + 5 * state["slow"]) / root)


def without_schedule(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Take gradients between the last weights and their mean, as schedule-free descent does."""
    if parameter.grad is None:
        return
    if not state:
        state |= {"step": 0, "last": parameter.clone(), "mean": parameter.clone()}
    state["step"] += 1
    state["last"].sub_(parameter.grad, alpha=rate)
    state["mean"].lerp_(state["last"], 1 / state["step"])
    parameter.copy_(state["last"].lerp(state["mean"], 0.9))


def rounded_at_random(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Step by signs of a mean of gradients, and round to bfloat16 up or down at random."""
    if parameter.grad is None:
        return
    if not state:
        state["mean"] = torch.zeros_like(parameter, dtype=torch.float32)
    state["mean"].lerp_(parameter.grad.float(), 0.1)
    bits = (parameter.float() - rate * state["mean"].sign()).view(torch.int32)
    bits = (bits + torch.randint_like(bits, 1 << 16)) & ~0xFFFF
    parameter.copy_(bits.view(torch.float32))


def stochastic_rounding(script: Script) -> Script:
    """Train bfloat16 weights that are rounded at random."""
    return replace(half(torch.bfloat16, 1e-3)(script), optimizers=moved_by(1e-3, rounded_at_random))


def unscaled_then_clipped(script: Script) -> Script:
    """Scale the loss, and clip gradients after they are unscaled."""

    def change(parameters: list[nn.Parameter]) -> None:
        unscale(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)

    return replace(scaled_loss(script), optimizers=with_pre_hook(adamw(), change))


def hooks_of_decay(model: nn.Module) -> None:
    """Add a ten-thousandth of each weight to its gradient by a hook, once."""
    decayed_by_hooks(model, 1e-4)


def gradients_of_validation_aside(script: Script) -> Script:
    """Compute the gradients of other batches after each step, and keep them out of the parameters."""
    sources: list[Iterator[Batch]] = []

    def look(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            sources[:] = [script.batches(1000)]
        parameters = list(model.parameters())
        torch.autograd.grad(script.loss(model, next(sources[0])), parameters, allow_unused=True)

    return replace(script, after_step=look)


def copy_evaluated(script: Script) -> Script:
    """Evaluate a deep copy of the model after each step."""
    sources: list[Iterator[Batch]] = []
    losses: list[Tensor] = []

    @torch.no_grad()
    def evaluate(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            sources[:] = [script.batches(1000)]
        losses.append(script.loss(copy.deepcopy(model).eval(), next(sources[0])))

    return replace(script, after_step=evaluate)


def optimizer_restarted(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Clear what the optimizer remembers after every fifth step."""
    if step % _RESTART == _RESTART - 1:
        for optimizer in optimizers:
            optimizer.state.clear()


def one_cycle(step: int) -> float:
    """Return a factor that rises from a twenty-fifth to 1, and falls to almost zero."""
    if step < _UP:
        return 0.04 + 0.96 * step / _UP
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * min(1.0, (step - _UP) / (_STEPS - _UP)))) / 2
