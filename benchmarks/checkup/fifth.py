"""Faults of a fifth blind set, for which the checks were not read: optimizers and schedules, and all others."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.data import BATCH_SIZE, Batch, Batches
from benchmarks.checkup.edits import optimized, replace_batches
from benchmarks.checkup.faults import MIXED, Fault
from benchmarks.checkup.fifth_data import DATA
from benchmarks.checkup.fifth_flow import FLOW
from benchmarks.checkup.fifth_wiring import WIRING, layer_of
from benchmarks.checkup.fourth import with_pre_hook
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.scripts import Script, adamw, circle, each_batch
from benchmarks.checkup.second_flow import deep

_DEEP = ("own causal", "own encoder", "llama", "gpt2", "bert", "vit")
_DEPTH, _PROCESSES, _AHEAD, _PARTS = 12, 8, 3, 4


def _rates_that_grow(model: nn.Module) -> list[Optimizer]:
    """Decay rates by layer with the wrong sign in the exponent, so that the lowest have the largest."""
    groups = []
    for name, each in model.named_parameters():
        number = layer_of(name)
        is_embedding = re.fullmatch(changes.EMBEDDINGS, name) is not None
        depth = (_DEPTH if is_embedding else 0) if number is None else _DEPTH - 1 - number
        groups.append({"params": [each], "lr": 1e-3 * 0.65**-depth})
    return [AdamW(groups)]


def _rates_by_tensor(model: nn.Module) -> list[Optimizer]:
    """Decay rates by the number of the tensor, where that of the layer was meant."""
    groups = [
        {"params": [each], "lr": 1e-3 * 0.65**number} for number, each in enumerate(reversed(list(model.parameters())))
    ]
    return [AdamW(groups)]


def _away_from_slow(script: Script) -> Script:
    """Go from the slow weights back where fast ones came from, by the wrong sign, at every third step."""
    slow: list[Tensor] = []

    @torch.no_grad()
    def after(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step % _AHEAD == _AHEAD - 1:
            for kept, parameter in zip(slow, model.parameters(), strict=True):
                kept.add_(kept - parameter)
                parameter.copy_(kept)

    def before(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            slow[:] = [each.detach().clone() for each in model.parameters()]

    return replace(script, before_step=before, after_step=after)


def _cast_late(script: Script) -> Script:
    """Cast the model to bfloat16 when the optimizer has been made."""
    script = each_batch(script, changes.in_dtype(torch.bfloat16))
    return replace(script, prepare_late=(lambda model: model.bfloat16(),), optimizers=adamw(2e-5))


def _cleared_by_epoch(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Clear gradients outside of the inner loop."""
    if step % 100 == 0:
        model.zero_grad()


def _weights_clipped(parameters: list[nn.Parameter]) -> None:
    """Scale the weights down where their gradients are larger than one half in all."""
    norm = torch.stack([each.grad.norm() for each in parameters]).norm()
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_((0.5 / norm).clamp(max=1.0))


def _adam_with_decay(model: nn.Module) -> list[Optimizer]:
    """Take Adam, which adds the decay to the gradients, with a decay that is large even for AdamW."""
    return [Adam(model.parameters(), 1e-3, weight_decay=1.0)]


def _same_in_all_parts(batches: Batches) -> Batches:
    """Take one batch for all parts of an accumulated step."""

    def repeated(seed: int) -> Iterator[Batch]:
        return (batch for batch in batches(seed) for _ in range(_PARTS))

    return repeated


FIFTH = (
    *WIRING,
    # Optimization
    Fault("slow weights moved away from fast ones", ("loss_rises",), {MIXED: _away_from_slow}),
    Fault(
        "rate multiplied by processes and samples",
        ("rate_too_high", "loss_rises"),
        {MIXED: optimized(adamw(1e-3 * _PROCESSES * BATCH_SIZE))},
    ),
    Fault(
        "rates by layer with the wrong sign in the exponent",
        ("rate_too_high", "loss_rises"),
        {_DEEP: deep(optimized(_rates_that_grow))},
    ),
    Fault("rates that decay by tensor, not by layer", ("rate_too_low",), {_DEEP: deep(optimized(_rates_by_tensor))}),
    Fault(
        "warm-up of ten million tokens, counted by steps",
        ("rate_too_low",),
        {MIXED: lambda script: replace(script, schedule=lambda step: min(1.0, (step + 1) / 1e7))},
    ),
    Fault("cast to bfloat16 after the optimizer was made", ("lost_updates",), {MIXED: fine_tuned(_cast_late)}),
    Fault(
        "gradients cleared once in an epoch",
        ("gradients_not_cleared",),
        {MIXED: lambda script: replace(script, clear="never", before_step=_cleared_by_epoch, steps_per_epoch=100)},
    ),
    Fault(
        "weights clipped in place of their gradients",
        ("weights_shrink",),
        {MIXED: lambda script: replace(script, optimizers=with_pre_hook(script.optimizers, _weights_clipped))},
    ),
    Fault(
        "Adam in place of AdamW, with a decay of 1",
        ("weights_shrink",),
        {_DEEP: optimized(_adam_with_decay)},
    ),
    Fault(
        "one batch for all parts of an accumulated step",
        ("repeated_batch",),
        {
            MIXED: lambda script: replace(
                replace_batches(script, _same_in_all_parts), accumulate=_PARTS, steps_per_epoch=100
            )
        },
    ),
    Fault(
        "loader begun anew by each evaluation",
        ("repeated_batch",),
        {
            ("own causal", "own encoder", "gpt2", "bert", "t5"): lambda script: replace(
                script, batches=circle(script.batches, 5), steps_per_epoch=100
            )
        },
    ),
    *FLOW,
    *DATA,
)
