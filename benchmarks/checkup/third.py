"""Faults of a third blind set, for which the checks were not read: wiring, optimizers and schedules, and all others."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.edits import half, loss_with, optimized, prepared, prepared_late, sgd
from benchmarks.checkup.faults import MIXED, Fault
from benchmarks.checkup.nets import WIDTH
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.optimizers import descend_in_float32, moved_by
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_flow import ATTENDED
from benchmarks.checkup.third_data import DATA
from benchmarks.checkup.third_flow import FLOW

QUERIES_AND_VALUES = r".*\.(q|v|q_proj|v_proj|query|value)"
_WITH_DROPOUT = ("own causal", "own encoder", "torch encoder", "gpt2", "bert", "t5")
_SMALL = ("own causal", "torch encoder", "llama", "bert classifier", "vit")
_WITH_BIAS = r"head|classifier|classifier\.out_proj|cls\.predictions\.decoder"


class Adapter(nn.Module):
    """Linear layer with an addition of low rank.

    Args:
        layer: that is added to.
        starts_at_zero: both matrices are zero, and not the second alone.
    """

    def __init__(self, layer: nn.Linear, *, starts_at_zero: bool):
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.zeros(4, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, 4))
        if not starts_at_zero:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, states: Tensor) -> Tensor:
        return self.layer(states) + states @ self.down.T @ self.up.T


def with_adapters(*, starts_at_zero: bool) -> changes.Prepare:
    """Return the change that freezes a model and adds adapters to its queries and values."""

    def prepare(model: nn.Module) -> None:
        model.requires_grad_(False)
        layers = set(changes.named(model, QUERIES_AND_VALUES))
        for name, module in [(name, module) for name, module in model.named_modules() if module in layers]:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, Adapter(module, starts_at_zero=starts_at_zero))

    return prepare


def assign_weights(model: nn.Module) -> None:
    """Load weights as the parameters themselves, not into those that are there."""
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def with_lazy_layer(model: nn.Module) -> None:
    """Let the first layer make a projection when it is first called."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if not hasattr(module, "projection"):
            module.projection = nn.Linear(WIDTH, WIDTH)
        if isinstance(output, tuple):
            return module.projection(output[0]), *output[1:]
        return module.projection(output)

    next(changes.named(model, changes.LAYER)).register_forward_hook(hook)


def _without_gradients(module: nn.Module) -> None:
    module.forward = torch.no_grad()(module.forward)


def _never_in_training(model: nn.Module) -> None:
    model.train = lambda mode=True: nn.Module.train(model, False)


def _root_alone(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    model.training = True


def _with_counts(layer: nn.Module) -> None:
    """Set the bias to how often each class comes, not to the logarithm of its share."""
    with torch.no_grad():
        layer.bias.copy_(100.0 + 37 * torch.arange(len(layer.bias)) % 400)


def _product(step: int) -> float:
    """Return the product of all factors of a warm-up until this step."""
    return math.prod(min(1.0, (each + 1) / 100) for each in range(step + 1))


def grouped(model: nn.Module) -> list[Optimizer]:
    """Return AdamW of matrices, which decay, and of all else."""
    matrices = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim <= 1]
    return [AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], 1e-3)]


def _clear_first_group(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    for parameter in optimizers[0].param_groups[0]["params"]:
        parameter.grad = None


def absolute_penalised(script: Script, factor: float) -> Script:
    """Add the absolute weights to the loss."""

    def penalised(model: nn.Module, loss: Tensor) -> Tensor:
        return loss + factor * torch.stack([each.abs().sum() for each in model.parameters()]).sum()

    return loss_with(script, penalised)


THIRD = (
    # Wiring
    Fault(
        "weights assigned after the optimizer was made",
        ("not_in_optimizer",),
        {("own causal", "own encoder", "torch encoder", "llama", "vit"): prepared_late(assign_weights)},
    ),
    Fault(
        "layer made in the first forward",
        ("not_in_optimizer",),
        {("own causal", "own encoder", "llama", "gpt2", "bert", "vit"): prepared(with_lazy_layer)},
    ),
    Fault(
        "head meant to be frozen by a word in all layers' names",
        ("frozen_parameters",),
        {
            ("own causal", "torch encoder", "gpt2", "bert", "roberta classifier", "bart"): prepared(
                changes.freeze(r".*(out|c_proj).*")
            )
        },
    ),
    Fault(
        "adapters whose two matrices start at zero",
        ("no_gradient",),
        {
            ("own causal", "own encoder", "llama", "bert", "t5", "vit"): fine_tuned(
                prepared(with_adapters(starts_at_zero=True))
            )
        },
    ),
    Fault(
        "feed-forward decorated to have no gradients",
        ("no_gradient",),
        {
            ("own causal", "own encoder", "llama", "gpt2", "t5", "vit"): prepared(
                changes.on_modules(r".*\.(mlp|DenseReluDense)", _without_gradients)
            )
        },
    ),
    Fault(
        "method for training mode overridden by eval mode",
        ("eval_mode",),
        {_WITH_DROPOUT: prepared(_never_in_training)},
    ),
    Fault(
        "flag of training set at the root alone",
        ("eval_mode",),
        {
            (*_WITH_DROPOUT, "bart"): lambda script: replace(
                prepared(lambda model: model.eval())(script), mode=lambda step: None, before_step=_root_alone
            )
        },
    ),
    Fault(
        "bias of the head set to counts, not their logarithms",
        ("initialisation",),
        {
            (
                "own causal",
                "own encoder",
                "torch encoder",
                "bert",
                "bert classifier",
                "roberta classifier",
                "vit",
            ): prepared(
                lambda model: _with_counts(
                    [each for each in changes.named(model, _WITH_BIAS) if isinstance(each, nn.Linear)][-1]
                )
            )
        },
    ),
    # Optimization
    Fault(
        "linear decay that goes on below zero",
        ("loss_rises",),
        {(*MIXED[:-1], "gpt2"): lambda script: replace(script, schedule=lambda step: 1 - step / 3)},
    ),
    Fault(
        "rate of plain SGD with a momentum of 0.99",
        ("rate_too_high", "loss_rises"),
        {_SMALL: optimized(sgd(1.0, momentum=0.99))},
    ),
    Fault(
        "factor of the warm-up multiplied on again at each step",
        ("rate_too_low",),
        {(*MIXED, "gpt2"): lambda script: replace(script, schedule=_product)},
    ),
    Fault(
        "update of a float32 copy of bfloat16 weights",
        ("lost_updates",),
        {
            MIXED: lambda script: replace(
                half(torch.bfloat16, 1e-3)(script),
                optimizers=moved_by(0.1, descend_in_float32),
            )
        },
    ),
    Fault(
        "gradients of the first group cleared only",
        ("gradients_not_cleared",),
        {ATTENDED: lambda script: replace(script, optimizers=grouped, clear="never", before_step=_clear_first_group)},
    ),
    Fault(
        "absolute weights penalised by 1",
        ("weights_shrink",),
        {_SMALL: lambda script: absolute_penalised(script, 1.0)},
    ),
    *FLOW,
    *DATA,
)
