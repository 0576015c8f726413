"""Oddities of sound trainings that no check was tuned on: what trains, by which optimizer, from which start."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, SparseAdam
from torch.utils.checkpoint import checkpoint

from benchmarks.checkup import architectures, changes, nets
from benchmarks.checkup.data import Batch, Batches
from benchmarks.checkup.edits import prepared, replace_batches
from benchmarks.checkup.nets import CLASSES, VOCABULARY, WIDTH, Block, Net
from benchmarks.checkup.scripts import Change, Script

_UNFREEZE = ((3, r".*(layers|blocks|encoder\.layer)\.1\..*"), (6, ".*"))
_LOSS_SCALE = 1024.0


def own(**options: bool | float) -> Change:
    """Return the change of scripts that builds an own net with other options."""

    def change(script: Script) -> Script:
        plain = script.build()
        classes = CLASSES if plain.is_pooled else None
        return replace(script, build=lambda: Net(is_causal=plain.is_causal, classes=classes, **options))

    return change


def unfreeze_gradually(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Unfreeze the upper layer at one step, and the whole model at a later one."""
    for at, pattern in _UNFREEZE:
        for name, parameter in model.named_parameters():
            if step == at and re.fullmatch(pattern, name):
                parameter.requires_grad_(True)


def adapters(model: nn.Module) -> None:
    """Freeze all but the head, and add an adapter to each layer that returns nothing at the start."""
    changes.freeze(changes.HEAD, all_but=True)(model)
    for layer in changes.named(model, changes.LAYER):
        layer.adapter = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))
        nn.init.zeros_(layer.adapter[2].weight)
        nn.init.zeros_(layer.adapter[2].bias)
        layer.register_forward_hook(_adapted)


def _adapted(module: nn.Module, inputs: object, output: Tensor | tuple) -> Tensor | tuple:
    if isinstance(output, tuple):
        return output[0] + module.adapter(output[0]), *output[1:]
    return output + module.adapter(output)


def visual_prompts(model: nn.Module) -> None:
    """Freeze all but the head, and add four tokens that are learned."""
    changes.freeze(changes.HEAD, all_but=True)(model)
    model.prompts = nn.Parameter(torch.randn(1, 4, WIDTH) * 0.02)
    model.vit.embeddings.register_forward_hook(
        lambda module, inputs, output: torch.cat([output, model.prompts.expand(len(output), -1, -1)], 1)
    )


def lora_plus(model: nn.Module) -> list[Optimizer]:
    """Give the second matrices of LoRA sixteen times the rate of the first."""
    named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    groups = [
        {"params": [each for name, each in named if ("lora_B" in name) == is_second], "lr": rate}
        for is_second, rate in ((True, 1.6e-3), (False, 1e-4))
    ]
    return [AdamW(groups)]


class Lion(Optimizer):
    """Steps by the sign of a mean of gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    parameter.sub_(group["lr"] * (0.9 * mean + 0.1 * parameter.grad).sign())
                    mean.lerp_(parameter.grad, 0.01)
        return loss


class EverySecond(AdamW):
    """AdamW that steps at every second call only.

    Args:
        parameters: it trains.
        first: number of calls before the first step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], first: int):
        super().__init__(parameters, 1e-3)
        self._calls = itertools.count(first)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        return super().step(closure) if next(self._calls) % 2 == 0 else None


def in_turns(model: nn.Module) -> list[Optimizer]:
    """Return two optimizers that step in turns, one of the layers and one of all else."""
    layers = {id(each) for layer in changes.named(model, changes.LAYER) for each in layer.parameters()}
    inner = [each for each in model.parameters() if id(each) in layers]
    outer = [each for each in model.parameters() if id(each) not in layers]
    return [EverySecond(inner, 0), EverySecond(outer, 1)]


def with_sparse_embeddings(script: Script) -> Script:
    """Give embeddings sparse gradients and an optimizer of their own."""

    def prepare(model: Net) -> None:
        model.tokens = nn.Embedding(VOCABULARY, WIDTH, sparse=True)
        nets.small_init(model.tokens)

    def optimizers(model: Net) -> list[Optimizer]:
        others = [each for each in model.parameters() if each is not model.tokens.weight]
        return [SparseAdam([model.tokens.weight], 1e-3), AdamW(others, 1e-3)]

    return replace(prepared(prepare)(script), optimizers=optimizers)


def scaled_by_hand(script: Script) -> Script:
    """Scale the loss, and unscale the gradients before the step."""

    def unscale(optimizer: Optimizer, args: object, options: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(_LOSS_SCALE)

    def optimizers(model: nn.Module) -> list[Optimizer]:
        made = list(script.optimizers(model))
        made[0].register_step_pre_hook(unscale)
        return made

    return replace(script, loss=lambda model, batch: _LOSS_SCALE * script.loss(model, batch), optimizers=optimizers)


def noisy_gradients(model: nn.Module) -> None:
    """Add noise to each gradient."""
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient + 1e-3 * torch.randn_like(gradient))


def of_varied_sizes(script: Script) -> Script:
    """Take two samples of the first batches, and more of later ones."""

    def varied(batches: Batches) -> Batches:
        def growing(seed: int) -> Iterator[Batch]:
            for number, batch in enumerate(batches(seed)):
                yield {name: value[: 2 + number % 7] for name, value in batch.items()}

        return growing

    return replace_batches(script, varied)


def cosine_of_ten(step: int) -> float:
    """Return the factor of the rate in a run of ten steps, which ends at zero."""
    return (1 + math.cos(math.pi * step / 10)) / 2


def bert_with_dropout(script: Script) -> Script:
    """Return the script with much dropout."""
    return replace(script, build=architectures.bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))


def reentrant(model: nn.Module) -> None:
    """Compute activations anew in the backward, in the older way."""
    model.gradient_checkpointing_enable({"use_reentrant": True})


def checkpointed_blocks(model: Net) -> None:
    """Compute activations of each block anew in the backward."""
    for block in model.blocks:
        block.forward = lambda *inputs, forward=block.forward: checkpoint(forward, *inputs, use_reentrant=False)


def zero_queries(model: nn.Module) -> None:
    """Start with queries of zero."""
    for module in changes.named(model, r".*\.(q|q_proj|query)"):
        nn.init.zeros_(module.weight)


def scaled_queries(model: nn.Module) -> None:
    """Start with queries that are divided by the root of the heads' width."""
    with torch.no_grad():
        for module in changes.named(model, r".*\.(q|q_proj|query)"):
            module.weight.mul_((WIDTH / nets.HEADS) ** -0.5)


class ReZero(Block):
    """Block whose parts come in through gates that start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        states = states + self.gates[0] * self.attention(self.norm1(states), mask, is_causal)
        return states + self.gates[1] * self.mlp(self.norm2(states))


def rezero(model: Net) -> None:
    """Replace the blocks by those with gates."""
    model.blocks = nn.ModuleList(ReZero() for _ in model.blocks).apply(nets.small_init)


def spectral(model: Net) -> None:
    """Divide the matrices of feed-forward nets by their spectral norm."""
    for module in changes.named(model, r".*mlp\.[02]"):
        nn.utils.parametrizations.spectral_norm(module)
