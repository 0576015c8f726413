"""Faults of wiring and of gradients' paths of a fifth blind set, for those of `fifth`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.edits import chosen, optimized, prepared
from benchmarks.checkup.faults import MIXED, Fault
from benchmarks.checkup.fifth_flow import swapped
from benchmarks.checkup.odd_trainings import fine_tuned, of_all, with_adapters, zero_outputs
from benchmarks.checkup.scripts import Change, MakeOptimizers, Prepare
from benchmarks.checkup.second_flow import deep

HEAD = r"(head|lm_head|classifier)\..*"
BRANCHES = r".*\.(attention\.out|mlp\.2|o_proj|down_proj|attn\.c_proj|mlp\.c_proj|mlp\.fc2)"
OF_CLASSES = ("own encoder", "torch encoder", "bert classifier", "roberta classifier", "vit")
LORA_TARGETS = {
    "own encoder": ("q", "v"),
    "torch encoder": ("linear1", "linear2"),
    "vit": ("q_proj", "v_proj"),
}
_MOST = ("own causal", "own encoder", "llama", "gpt2", "vit")
_THAWED, _MICRO_BATCHES = 4, 32


def layer_of(name: str) -> int | None:
    """Return the number of the layer of a parameter; None if it is in no layer."""
    found = re.search(r"(?:layers|blocks|block|h|layer)\.(\d+)\.", name)
    return None if found is None else int(found[1])


def _rates_but_of_last_layer(model: nn.Module) -> list[Optimizer]:
    """Make a group for each layer, and count the layers to the last but one."""
    named = list(model.named_parameters())
    layers = 1 + max(number for name, _ in named if (number := layer_of(name)) is not None)
    groups = [{"params": [each for name, each in named if layer_of(name) is None], "lr": 1e-3}]
    for number in range(layers - 1):
        of_layer = [each for name, each in named if layer_of(name) == number]
        groups.append({"params": of_layer, "lr": 1e-3 * 0.8 ** (layers - 1 - number)})
    return [AdamW(groups)]


def _groups_of_generator(model: nn.Module) -> list[Optimizer]:
    """Read names and parameters by a generator, of which the first group leaves nothing for the second."""
    named = model.named_parameters()
    head = [each for name, each in named if re.fullmatch(HEAD, name)]
    others = [each for name, each in named if not re.fullmatch(HEAD, name)]
    return [AdamW([{"params": head, "lr": 1e-2}, {"params": others, "lr": 1e-3}])]


def _with_new_head(optimizers: MakeOptimizers) -> Change:
    """Return the change of a model that has learned something, is given a new head, and other optimizers."""
    return fine_tuned(lambda script: replace(prepared(changes.new_head)(script), optimizers=optimizers))


def _of_vectors(old: nn.Embedding) -> nn.Embedding:
    """Return embeddings of given vectors, which PyTorch freezes unless it is told not to."""
    return nn.Embedding.from_pretrained(torch.randn_like(old.weight) * 0.02, padding_idx=old.padding_idx)


def _gates_and_outputs_of_zero(model: nn.Module) -> None:
    """Start each branch with an output layer of zeros, and a gate of zero behind it."""
    zero_outputs(model)
    for module in changes.named(model, BRANCHES):
        module.gate = nn.Parameter(torch.zeros(()))
        module.register_forward_hook(lambda module, inputs, output: module.gate * output)


def cosine_head(first: float, read: Callable[[Tensor], Tensor | float]) -> Prepare:
    """Return the change that makes logits of cosines and a learned scale, which a function reads."""

    def prepare(model: nn.Module) -> None:
        model.scale = nn.Parameter(torch.tensor(first))
        for head in changes.named(model, "head|lm_head|classifier"):
            head.register_forward_hook(
                lambda module, inputs, output: (
                    read(model.scale.exp())
                    * F.linear(F.normalize(inputs[0], dim=-1), F.normalize(module.weight, dim=-1))
                )
            )

    return prepare


def _through_numpy(states: Tensor) -> Tensor:
    """Cut outliers by NumPy."""
    return torch.from_numpy(np.clip(states.detach().numpy(), -4.0, 4.0))


def _without_residual_of_attention(model: nn.Module) -> None:
    """Overwrite the states by what attention returns, where it should be added."""
    for layer in changes.named(model, changes.LAYER):
        attention = next(each for name, each in layer.named_children() if name in ("attention", "self_attn", "attn"))
        if hasattr(layer, "has_residuals"):
            layer.forward = lambda states, mask, is_causal, own=layer: _overwritten(own, states, mask, is_causal)
            continue
        read: list[Tensor] = []

        def remember(module: nn.Module, inputs: tuple, named: dict, read: list[Tensor] = read) -> None:
            read[:] = [inputs[0] if inputs else named["hidden_states"]]

        def subtract(module: nn.Module, inputs: tuple, output: tuple, read: list[Tensor] = read) -> tuple:
            return output[0] - read[0], *output[1:]

        layer.register_forward_pre_hook(remember, with_kwargs=True)
        attention.register_forward_hook(subtract)


def _overwritten(layer: nn.Module, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    states = layer.dropout(layer.attention(layer.norm1(states), mask, is_causal))
    return states + layer.dropout(layer.mlp(layer.norm2(states)))


def _thawed_in_eval(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Freeze all but the head by its flags and its mode, and give back the flags alone some steps later."""
    for name, child in model.named_children():
        if name not in ("head", "classifier") and step == 0:
            child.eval().requires_grad_(False)
    if step == _THAWED:
        model.requires_grad_(True)


def _lora(*targets: str) -> Prepare:
    return with_adapters(LoraConfig, r=4, target_modules=list(targets))


WIRING = (
    Fault(
        "optimizer of the backbone, a new head left out",
        ("not_in_optimizer",),
        {("own encoder", "torch encoder", "bert classifier", "vit"): _with_new_head(chosen(HEAD, all_but=True))},
    ),
    Fault(
        "rates by layer, the last layer forgotten",
        ("not_in_optimizer",),
        {("own causal", "torch encoder", "gpt2", "bert classifier", "vit"): optimized(_rates_but_of_last_layer)},
    ),
    Fault(
        "generator of parameters used up by the first group",
        ("not_in_optimizer",),
        {OF_CLASSES: fine_tuned(optimized(_groups_of_generator))},
    ),
    Fault(
        "embeddings of given vectors, frozen by default",
        ("frozen_parameters",),
        {
            ("own causal", "own encoder", "torch encoder", "llama", "bert classifier", "qwen2"): prepared(
                swapped(changes.EMBEDDING, _of_vectors)
            )
        },
    ),
    Fault(
        "LoRA that freezes the new head, too",
        ("frozen_parameters",),
        {(name,): fine_tuned(prepared(changes.new_head, _lora(*targets))) for name, targets in LORA_TARGETS.items()},
    ),
    Fault("gates of zero behind outputs of zero", ("no_gradient",), {_MOST: prepared(_gates_and_outputs_of_zero)}),
    Fault(
        "learned scale of cosines read by item",
        ("no_gradient",),
        {
            ("own causal", "own encoder", "torch encoder", "llama", "bert classifier", "vit"): prepared(
                cosine_head(0.0, Tensor.item)
            )
        },
    ),
    Fault(
        "states through NumPy between layers",
        ("broken_gradient_path", "no_gradient"),
        {MIXED: prepared(changes.on_outputs(changes.LAYER, _through_numpy, first_only=True))},
    ),
    Fault(
        "attention not added but assigned in 12 layers",
        ("broken_gradient_path", "initialisation"),
        {("own causal", "own encoder", "llama", "gpt2", "qwen2"): deep(prepared(_without_residual_of_attention))},
    ),
    Fault(
        "gradients averaged over micro-batches by each of 12 stages",
        ("broken_gradient_path",),
        {
            ("own causal", "bert", "vit"): deep(
                prepared(changes.on_outputs(changes.LAYER, changes.with_gradient_times(1 / _MICRO_BATCHES)))
            )
        },
    ),
    Fault(
        "backbone thawed after some steps, left in eval mode",
        ("eval_mode",),
        {
            OF_CLASSES: fine_tuned(
                lambda script: replace(
                    script,
                    optimizers=of_all,
                    before_step=_thawed_in_eval,
                    mode=lambda step: True if step == 0 else None,
                )
            )
        },
    ),
)
