"""Changes of scripts."""

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.data import Batch, Batches
from benchmarks.checkup.scripts import Change, MakeOptimizers, Prepare, Script, adamw, changed, each_batch


def prepared(*prepares: Prepare) -> Change:
    """Return the change of scripts that changes the new model."""
    return lambda script: replace(script, prepare=(*script.prepare, *prepares))


def prepared_late(prepare: Prepare) -> Change:
    """Return the change of scripts that changes the model after the optimizers were made."""
    return lambda script: changed(script, prepare_late=prepare)


def batchwise(change: Callable[[Batch], Batch]) -> Change:
    """Return the change of scripts that changes each batch."""
    return lambda script: each_batch(script, change)


def optimized(optimizers: MakeOptimizers, **fields: object) -> Change:
    """Return the change of scripts that trains with other optimizers."""
    return lambda script: replace(script, optimizers=optimizers, **fields)


def chosen(*patterns: str, all_but: bool = False) -> MakeOptimizers:
    """Return AdamW of the parameters with such names, or of all others."""

    def optimizers(model: nn.Module) -> list[Optimizer]:
        fitting = [
            parameter
            for name, parameter in model.named_parameters()
            if any(re.fullmatch(pattern, name) for pattern in patterns) != all_but
        ]
        return [torch.optim.AdamW(fitting, 1e-3)]

    return optimizers


def sgd(rate: float, **options: float) -> MakeOptimizers:
    """Return SGD with all parameters that have gradients."""
    return lambda model: [SGD([each for each in model.parameters() if each.requires_grad], rate, **options)]


def loss_with(script: Script, change: Callable[[nn.Module, Tensor], Tensor]) -> Script:
    """Return the script with a function of the model and its loss in place of the loss."""
    return replace(script, loss=lambda model, batch: change(model, script.loss(model, batch)))


def half(dtype: torch.dtype, rate: float) -> Change:
    """Return the change of scripts whose weights have a dtype."""

    def change(script: Script) -> Script:
        script = each_batch(changed(script, prepare=lambda model: model.to(dtype)), changes.in_dtype(dtype))
        return replace(script, optimizers=adamw(rate))

    return change


def replace_batches(script: Script, change: Callable[[Batches], Batches]) -> Script:
    """Return the script with other batches in place of its own."""
    return replace(script, batches=change(script.batches))
