"""Faults of optimizers, schedules and precision of the second blind set, for those of `second`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.data import IGNORED, Batch
from benchmarks.checkup.edits import loss_with, optimized, prepared, sgd
from benchmarks.checkup.faults import MIXED, Fault
from benchmarks.checkup.optimizers import ascend, moved_by
from benchmarks.checkup.scripts import MakeOptimizers, Script, adamw

_SCALE = 65536.0


def _summed(script: Script) -> Script:
    """Sum the loss over the labels, and keep the rate for their mean."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return script.loss(model, batch) * (batch["labels"] != IGNORED).sum()

    return replace(script, loss=loss, optimizers=sgd(0.3))


def _with_pre_hook(make: MakeOptimizers, change: Callable[[nn.Parameter], object]) -> MakeOptimizers:
    """Return optimizers that change each parameter with a gradient before a step."""

    def hook(optimizer: Optimizer, args: object, options: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    change(parameter)

    def optimizers(model: nn.Module) -> Sequence[Optimizer]:
        made = make(model)
        for optimizer in made:
            optimizer.register_step_pre_hook(hook)
        return made

    return optimizers


def _unscale(parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        parameter.grad.div_(_SCALE)


def _summed_by_hand(script: Script) -> Script:
    """Add gradients to sums that are never set to zero."""
    sums: dict[int, Tensor] = {}

    def add(parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            parameter.grad.add_(sums.get(id(parameter), torch.zeros(())))
            sums[id(parameter)] = parameter.grad.clone()

    def begin(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            sums.clear()

    return replace(script, optimizers=_with_pre_hook(adamw(), add), before_step=begin)


def _clear_head(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    for module in changes.named(model, changes.HEAD):
        module.zero_grad()


@torch.no_grad()
def _through_bfloat16(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


def _averaged(script: Script, decay: float, *, from_zero: bool) -> Script:
    """Copy an average of the weights back into the model after each step."""
    averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            weights = {name: each.detach().clone() for name, each in model.named_parameters()}
            averages.update({name: 0 * each if from_zero else each for name, each in weights.items()})

    @torch.no_grad()
    def copy_back(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_(averages[name].lerp_(parameter, 1 - decay))

    return replace(script, before_step=begin, after_step=copy_back)


def _heavily_penalised(model: nn.Module, loss: Tensor) -> Tensor:
    return loss + 10 * torch.stack([each.square().sum() for each in model.parameters()]).sum()


STEPS = (
    Fault(
        "descent by hand with the wrong sign",
        ("loss_rises",),
        {(*MIXED, "gpt2"): optimized(moved_by(0.1, ascend))},
    ),
    Fault(
        "reversal of gradients left in below the head",
        ("loss_rises",),
        {
            ("own causal", "own encoder", "llama", "gpt2", "bert", "t5", "vit"): prepared(
                changes.on_outputs(changes.LAST_NORM, changes.with_gradient_times(-1.0))
            )
        },
    ),
    Fault(
        "warm-up upside down",
        ("rate_too_high", "loss_rises"),
        {MIXED: lambda script: replace(script, schedule=lambda step: 1000 / (step + 1))},
    ),
    Fault(
        "loss summed, rate of SGD for a mean",
        ("rate_too_high", "loss_rises"),
        {("own causal", "llama", "gpt2", "bert", "bart", "t5"): _summed},
    ),
    Fault(
        "schedule that returns rates, not factors",
        ("rate_too_low",),
        {MIXED: optimized(adamw(5e-5), schedule=lambda step: 5e-5 * (1 - step / 1000))},
    ),
    Fault("Adam's epsilon of 1e8", ("rate_too_low",), {MIXED: optimized(adamw(eps=1e8, weight_decay=0.0))}),
    Fault(
        "gradients unscaled that were never scaled",
        ("rate_too_low",),
        {MIXED: optimized(_with_pre_hook(sgd(0.1), _unscale))},
    ),
    Fault(
        "weights through bfloat16 after each step",
        ("lost_updates", "rate_too_low"),
        {MIXED: optimized(adamw(1e-5), after_step=_through_bfloat16)},
    ),
    Fault(
        "slow average copied back after each step",
        ("lost_updates", "rate_too_low"),
        {MIXED: lambda script: _averaged(script, 0.9999, from_zero=False)},
    ),
    Fault(
        "gradients summed by hand, never set to zero",
        ("gradients_not_cleared",),
        {MIXED: _summed_by_hand},
    ),
    Fault(
        "gradients of the head cleared only",
        ("gradients_not_cleared",),
        {
            ("own causal", "own encoder", "llama", "bert classifier", "vit"): lambda script: replace(
                script, clear="never", before_step=_clear_head
            )
        },
    ),
    Fault(
        "squares of weights penalised by 10",
        ("weights_shrink",),
        {MIXED: lambda script: loss_with(script, _heavily_penalised)},
    ),
    Fault(
        "average that starts at zero copied back",
        ("weights_shrink",),
        {MIXED: lambda script: _averaged(script, 0.9, from_zero=True)},
    ),
)
