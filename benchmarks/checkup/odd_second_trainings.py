"""Oddities of sound trainings of the second blind set: losses, batches and optimizers, for `odd_second`."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch
from benchmarks.checkup.edits import loss_with, prepared
from benchmarks.checkup.nets import PAD, Net
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_data import next_tokens


def momentum_by_hand(model: nn.Module) -> list[Optimizer]:
    """Return SGD, whose gradients a hook replaces by sums that fade."""
    sums: dict[int, Tensor] = {}

    def fade(optimizer: Optimizer, args: object, options: object) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.add_(sums.get(id(parameter), torch.zeros(())), alpha=0.9)
                sums[id(parameter)] = parameter.grad.clone()

    made = SGD(model.parameters(), 0.02)
    made.register_step_pre_hook(fade)
    return [made]


def centred_gradients(model: nn.Module) -> None:
    """Subtract from the gradient of each matrix its mean over the inputs."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.register_hook(lambda gradient: gradient - gradient.mean(-1, keepdim=True))


def with_stale_group(model: nn.Module) -> list[Optimizer]:
    """Return AdamW that still holds a head which is no part of the model any more."""
    return [AdamW([*model.parameters(), *nn.Linear(32, 4).parameters()], 1e-3)]


def tie_late(model: nn.Module) -> None:
    """Tie the head to the embeddings after the optimizer was made, which still holds the old head."""
    if isinstance(model, Net):
        model.head.weight = model.tokens.weight
    else:
        model.lm_head.weight = model.get_input_embeddings().weight


def upper_from_lower(model: nn.Module) -> None:
    """Start the upper layer with the weights of a frozen copy's lower one."""
    teacher = copy.deepcopy(model).requires_grad_(False)
    lower, *_ = changes.named(teacher, changes.LAYER)
    *_, upper = changes.named(model, changes.LAYER)
    upper.load_state_dict(lower.state_dict())


def looking_ahead(script: Script) -> Script:
    """Go half of the way back to slow weights after every fifth step."""
    slow: dict[str, Tensor] = {}

    def begin(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            slow.update({name: each.detach().clone() for name, each in model.named_parameters()})

    @torch.no_grad()
    def after(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step % 5 == 4:
            for name, parameter in model.named_parameters():
                parameter.copy_(slow[name].lerp_(parameter, 0.5))

    return replace(script, before_step=begin, after_step=after)


def averaged_aside(script: Script) -> Script:
    """Keep an average of the weights, swap it in for an evaluation, and swap it out again."""
    averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def after(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        weights = {name: each.detach().clone() for name, each in model.named_parameters()}
        for name, weight in weights.items():
            averages[name] = weight.clone() if step == 0 else averages[name].lerp(weight, 0.01)
        if step % 4 == 3:
            model.load_state_dict(averages, strict=False)
            script.loss(model.eval(), next(script.batches(100 + step)))
            model.load_state_dict(weights, strict=False)
            model.train()

    return replace(script, after_step=after)


def lightly_penalised(script: Script) -> Script:
    """Add the squares of the weights, weighed by 1e-4, to the loss."""
    return loss_with(
        script, lambda model, loss: loss + 1e-4 * torch.stack([p.square().sum() for p in model.parameters()]).sum()
    )


@torch.no_grad()
def bounded(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Keep weights between -2 and 2."""
    for parameter in model.parameters():
        parameter.clamp_(-2, 2)


def restarts(step: int) -> float:
    """Return the factor of a cosine that starts anew after every eight steps."""
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step % 8) / 8)) / 2


def summed(script: Script) -> Script:
    """Sum the loss over the labels, with a rate to match."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return script.loss(model, batch) * (batch["labels"] != IGNORED).sum()

    return replace(script, loss=loss, optimizers=lambda model: [SGD(model.parameters(), 2e-3)])


def weighed_by_labels(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh the losses of all next tokens, padding's too, by the mask of these tokens."""
    logits, labels = next_tokens(model, batch)
    weights = batch["attention_mask"][:, 1:]
    return (F.cross_entropy(logits.mT, labels, reduction="none") * weights).sum() / weights.sum()


def padding_ignored(model: nn.Module, batch: Batch) -> Tensor:
    """Give padding its own id as label, which the loss ignores."""
    logits, labels = next_tokens(model, batch)
    return F.cross_entropy(logits.mT, labels, ignore_index=PAD)


def smoothed_by_hand(model: nn.Module, batch: Batch) -> Tensor:
    """Smooth labels by hand, over real tokens."""
    logits, labels = next_tokens(model, batch)
    real = batch["attention_mask"][:, 1:].bool()
    log = logits.log_softmax(-1)[real]
    return 0.9 * F.nll_loss(log, labels[real]) - 0.1 * log.mean()


def without_shift(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross entropy of labels that were shifted already."""
    logits = logits_of(model, {name: batch[name] for name in ("input_ids", "attention_mask")})
    return F.cross_entropy(logits.mT, batch["labels"])


def two_ahead(model: nn.Module, batch: Batch) -> Tensor:
    """Predict the next word, and with a further layer the one after it."""
    states = model.encode(model.embed(batch["input_ids"]), batch["attention_mask"])
    labels = batch["labels"]
    second = F.cross_entropy(model.head(model.further(states))[:, :-2].mT, labels[:, 2:])
    return F.cross_entropy(model.head(states)[:, :-1].mT, labels[:, 1:]) + 0.3 * second


def with_further_layer(model: nn.Module) -> None:
    """Add the layer that looks one word further."""
    model.further = nn.Linear(32, 32)


def every_layer(model: nn.Module, batch: Batch) -> Tensor:
    """Predict the next word from each layer's states."""
    states, mask = (
        model.embed(batch["input_ids"]),
        model.make_mask(batch["attention_mask"], batch["input_ids"].shape[1]),
    )
    losses = []
    for block in model.blocks:
        states = block(states, mask, True)
        losses.append(F.cross_entropy(model.head(model.norm(states))[:, :-1].mT, batch["labels"][:, 1:]))
    return torch.stack(losses).mean()


def below_zero(script: Script) -> Script:
    """Subtract a constant from the loss, which is negative from the start."""
    return loss_with(script, lambda model, loss: loss - 10)


def perplexity(script: Script) -> Script:
    """Train on the exponential of the mean loss."""
    return replace(loss_with(script, lambda model, loss: loss.exp()), clip=1.0)


def of_sigmoid(model: nn.Module, batch: Batch) -> Tensor:
    """Tell two kinds of samples apart by a single output."""
    return F.binary_cross_entropy_with_logits(logits_of(model, batch)[:, 0], (batch["labels"] // 2).float())


def dropout_of_attention(script: Script) -> Script:
    """Let dropout act within attention only, where a function does it."""

    def prepare(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    return prepared(prepare)(script)
