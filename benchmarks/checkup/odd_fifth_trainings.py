"""Oddities of sound optimizers, schedules and loops of a fifth blind set, for `odd_fifth`."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adadelta, Adam, AdamW, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import Batch, Batches
from benchmarks.checkup.edits import loss_with, prepared, replace_batches
from benchmarks.checkup.fifth_wiring import HEAD, layer_of
from benchmarks.checkup.fourth import with_pre_hook
from benchmarks.checkup.nets import CLASSES
from benchmarks.checkup.odd_trainings import fine_tuned, with_adapters
from benchmarks.checkup.scripts import Change, MakeOptimizers, Script, adamw

_PARTS, _UP, _PLATEAU, _TURN, _SCALE = 4, 4, 400, 5, 1024.0


def _is_head(name: str) -> bool:
    return re.fullmatch(HEAD, name) is not None


def head_at_tenfold(model: nn.Module) -> list[Optimizer]:
    """Train the head at ten times the rate of the backbone."""
    groups = [
        {"params": [each for name, each in model.named_parameters() if _is_head(name) == is_head], "lr": rate}
        for is_head, rate in ((False, 1e-4), (True, 1e-3))
    ]
    return [AdamW(groups)]


def head_by_its_own(model: nn.Module) -> list[Optimizer]:
    """Train the head and the backbone by an optimizer each."""
    return [
        AdamW([each for name, each in model.named_parameters() if _is_head(name) == is_head], rate)
        for is_head, rate in ((False, 1e-4), (True, 1e-2))
    ]


def with_new_head(optimizers: MakeOptimizers) -> Change:
    """Return the change of a model that has learned something, is given a new head, and other optimizers."""
    return fine_tuned(lambda script: replace(prepared(changes.new_head)(script), optimizers=optimizers))


def rates_that_decay(model: nn.Module) -> list[Optimizer]:
    """Decay rates by a fifth from each layer to the one below."""
    named = list(model.named_parameters())
    layers = 1 + max(number for name, _ in named if (number := layer_of(name)) is not None)
    groups = []
    for name, each in named:
        number = layer_of(name)
        is_embedding = re.fullmatch(changes.EMBEDDINGS, name) is not None
        depth = (layers if is_embedding else 0) if number is None else layers - number
        groups.append({"params": [each], "lr": 1e-3 * 0.8**depth})
    return [AdamW(groups)]


def stabilised_lora(*targets: str) -> Change:
    """Return the change of scripts that trains LoRA of a large rank, scaled by the rank's root."""
    adapters = with_adapters(LoraConfig, r=16, lora_alpha=16, use_rslora=True, target_modules=list(targets))
    return fine_tuned(prepared(adapters))


def adadelta(model: nn.Module) -> list[Optimizer]:
    """Return Adadelta, which finds its steps itself."""
    return [Adadelta(model.parameters(), 1.0)]


def adam_with_small_decay(model: nn.Module) -> list[Optimizer]:
    """Return Adam with a decay of 1e-4 within its gradients."""
    return [Adam(model.parameters(), 1e-3, weight_decay=1e-4)]


def lamb(parameter: nn.Parameter, rate: float, state: dict[str, Any]) -> None:
    """Step by Adam's direction, as far as a share of the parameter's norm."""
    if not state:
        state |= {"step": 0, "mean": 0 * parameter, "square": 0 * parameter}
    state["step"] += 1
    state["mean"].lerp_(parameter.grad, 0.1)
    state["square"].lerp_(parameter.grad.square(), 0.01)
    root = (state["square"] / (1 - 0.99 ** state["step"])).sqrt() + 1e-6
    move = state["mean"] / (1 - 0.9 ** state["step"]) / root
    if move.norm() > 0:
        parameter.sub_(rate * parameter.norm().clamp(0.1, 10.0) / move.norm() * move)


def clipped_by_units(script: Script) -> Script:
    """Clip the gradient of each row at a tenth of the row's norm."""

    def clip(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.ndim > 1:
                norms = [each.detach().flatten(1).norm(dim=1).clamp(min=1e-3) for each in (parameter, parameter.grad)]
                factors = (0.1 * norms[0] / norms[1]).clamp(max=1.0)
                parameter.grad.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))

    return replace(script, optimizers=with_pre_hook(script.optimizers, clip))


def skipped_where_large(script: Script) -> Script:
    """Leave out steps whose gradient is three times as large as usual."""
    usual: list[float] = []

    def skip(parameters: list[nn.Parameter]) -> None:
        norm = torch.stack([each.grad.norm() for each in parameters]).norm().item()
        if usual and norm > 3 * sum(usual) / len(usual):
            for parameter in parameters:
                parameter.grad = None
        usual.append(norm)

    return replace(script, optimizers=with_pre_hook(script.optimizers, skip))


def averaged_aside(script: Script) -> Script:
    """Keep an average of the weights, which nobody trains."""
    averages: list[Tensor] = []

    @torch.no_grad()
    def after(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            averages[:] = [each.detach().clone() for each in model.parameters()]
        for average, parameter in zip(averages, model.parameters(), strict=True):
            average.lerp_(parameter, 0.01)

    return replace(script, after_step=after)


def plateau(step: int) -> float:
    """Rise, stay, and fall in the last of five hundred steps."""
    return min(1.0, (step + 1) / _UP) if step < _PLATEAU else max(0.1, 1 - (step - _PLATEAU) / 100)


def inverse_root(step: int) -> float:
    """Rise to a peak, and fall by the root of the steps."""
    return min((step + 1) / _UP, (_UP / (step + 1)) ** 0.5)


def triangles(step: int) -> float:
    """Rise and fall in turns."""
    return 0.2 + 0.8 * abs((step % (2 * _TURN)) / _TURN - 1)


def polynomial(step: int) -> float:
    """Fall by the square of what is left of a thousand steps."""
    return max(0.0, 1 - step / 1000) ** 2


def _in_parts(batches: Batches) -> Batches:
    """Cut each batch into four."""

    def cut(seed: int) -> Iterator[Batch]:
        for batch in batches(seed):
            size = len(next(iter(batch.values()))) // _PARTS
            yield from ({name: value.split(size)[part] for name, value in batch.items()} for part in range(_PARTS))

    return cut


def cut_and_accumulated(script: Script) -> Script:
    """Cut each batch into four parts, whose gradients are summed."""
    return replace(replace_batches(script, _in_parts), accumulate=_PARTS)


def two_backwards(script: Script) -> Script:
    """Send back two losses, one after the other, before the step."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        pairs = logits_of(model, batch)
        aside = F.binary_cross_entropy_with_logits(
            pairs[:, 2:].logsumexp(-1) - pairs[:, :2].logsumexp(-1), (batch["labels"] >= CLASSES // 2).float()
        )
        (0.5 * aside).backward()
        return script.loss(model, batch)

    return replace(script, loss=loss)


def dropout_that_fades(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Lower the share of dropout from step to step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = max(0.05, 0.3 - 0.01 * step)


def dropout_that_begins_late(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Let dropout act from the fourth step on."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1 if step >= _UP else 0.0


def thousandfold(script: Script) -> Script:
    """Multiply the loss by a thousand, which Adam does not mind."""
    return loss_with(script, lambda model, loss: 1000 * loss)


def half_with_scale(script: Script) -> Script:
    """Compute in float16, with a loss that is scaled up and gradients that are scaled down."""

    def unscale(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad.div_(_SCALE)

    scaled = loss_with(script, lambda model, loss: _SCALE * loss)
    return replace(scaled, autocast=torch.float16, optimizers=with_pre_hook(script.optimizers, unscale))


def in_bits(script: Script) -> Script:
    """Count the loss in bits."""
    return loss_with(script, lambda model, loss: loss / torch.tensor(2.0).log())


def with_betas(first: float, second: float) -> Callable[[nn.Module], Sequence[Optimizer]]:
    """Return AdamW with other means."""
    return adamw(betas=(first, second))


def thawed_in_training_mode(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Freeze all but the head for some steps by its flags alone, and thaw it."""
    for name, child in model.named_children():
        if name not in ("head", "classifier"):
            child.requires_grad_(step >= _UP)
