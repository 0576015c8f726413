"""Oddities of sound losses of a fourth blind set, for `odd_fourth`."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import loss_with
from benchmarks.checkup.fourth import with_pre_hook
from benchmarks.checkup.nets import CLASSES, FIRST_WORD, WIDTH
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_data import next_tokens

_AHEAD, _SIZE = 4, 0.05
_SHARES = torch.tensor([0.4, 0.3, 0.2, 0.1])


def four_ahead(model: nn.Module, batch: Batch) -> Tensor:
    """Predict the word at the same place of the next block of four."""
    logits, labels = logits_of(model, batch)[:, :-_AHEAD], batch["labels"][:, _AHEAD:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def by_the_script(model: nn.Module, batch: Batch) -> Tensor:
    """Give the encoder's states and the mask to the decoder."""
    mask = batch["attention_mask"]
    states = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
    return model(encoder_outputs=states, attention_mask=mask, labels=batch["labels"]).loss


def with_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Reward the entropy of the predictions a little."""
    logits, labels = next_tokens(model, batch)
    is_real = batch["attention_mask"][:, 1:].bool()
    entropy = torch.distributions.Categorical(logits=logits[is_real]).entropy().mean()
    return F.cross_entropy(logits[is_real], labels[is_real]) - 0.01 * entropy


def unlikely_repeats(model: nn.Module, batch: Batch) -> Tensor:
    """Ask that the word which was just read be unlikely, too."""
    logits, labels = next_tokens(model, batch)
    is_real = batch["attention_mask"][:, 1:].bool() & (labels != batch["input_ids"][:, :-1])
    repeated = logits.softmax(-1).gather(-1, batch["input_ids"][:, :-1, None]).squeeze(-1)
    unlikely = -torch.log1p(-repeated.clamp(max=0.999))
    return F.cross_entropy(logits[is_real], labels[is_real]) + 0.5 * unlikely[is_real].mean()


def clipped_ratios(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of PPO: drawn words are rewarded where right, and ratios of probabilities are clipped."""
    logits, labels = next_tokens(model, batch)
    is_real = batch["attention_mask"][:, 1:].bool()
    drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
    chosen = logits.log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)[is_real]
    rewards = (drawn == labels)[is_real].float()
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    ratios = (chosen - chosen.detach()).exp()
    return -torch.minimum(ratios * advantages, ratios.clamp(0.8, 1.2) * advantages).mean()


def squares_of_shares(model: nn.Module, batch: Batch) -> Tensor:
    """Return the squared distance of the probabilities from the classes."""
    return (logits_of(model, batch).softmax(-1) - F.one_hot(batch["labels"], CLASSES)).square().sum(-1).mean()


def with_polynomial(model: nn.Module, batch: Batch) -> Tensor:
    """Add one less the probability of the right class to the cross entropy."""
    losses = F.cross_entropy(logits_of(model, batch), batch["labels"], reduction="none")
    return (losses + 1 - (-losses).exp()).mean()


def hard_half(model: nn.Module, batch: Batch) -> Tensor:
    """Learn the half of the samples with the highest losses."""
    losses = F.cross_entropy(logits_of(model, batch), batch["labels"], reduction="none")
    return losses.topk(len(losses) // 2).values.mean()


def adjusted_by_shares(model: nn.Module, batch: Batch) -> Tensor:
    """Add logarithms of the classes' shares to the logits."""
    return F.cross_entropy(logits_of(model, batch) + _SHARES.log(), batch["labels"])


def better_than_random(model: nn.Module, batch: Batch) -> Tensor:
    """Give a text a higher score than one whose words are drawn at random."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    random = torch.where(ids >= FIRST_WORD, torch.randint_like(ids, FIRST_WORD, 40), ids)
    better, worse = (logits_of(model, {"input_ids": each, "attention_mask": mask})[:, 0] for each in (ids, random))
    return -F.logsigmoid(better - worse).mean()


def with_two_scales(model: nn.Module) -> None:
    """Give the model the scales of two losses, which are learned."""
    model.scales = nn.Parameter(torch.zeros(2))


def scaled_by_learning(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh the loss of classes and that of pairs of classes by scales that are learned."""
    logits, labels = logits_of(model, batch), batch["labels"]
    pairs = logits[:, 2:].logsumexp(-1) - logits[:, :2].logsumexp(-1)
    losses = F.cross_entropy(logits, labels), F.binary_cross_entropy_with_logits(pairs, (labels >= 2).float())
    return sum(loss * (-scale).exp() + scale for loss, scale in zip(losses, model.scales, strict=True))


def over_own_value(script: Script) -> Script:
    """Divide the loss by its own value, so that it is always one."""
    return loss_with(script, lambda model, loss: loss / loss.detach())


def over_passes(script: Script) -> Script:
    """Average the loss over three passes with other dropout."""
    return replace(script, loss=lambda model, batch: torch.stack([script.loss(model, batch) for _ in range(3)]).mean())


def looked_at(script: Script) -> Script:
    """Look at the gradients of the embeddings with all weights frozen, and thaw them before the loss."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen: list[Tensor] = []
        (embedding,) = changes.named(model, changes.EMBEDDING)
        model.requires_grad_(False)
        handle = embedding.register_forward_hook(
            lambda module, inputs, output: seen.append(output.requires_grad_()) or output
        )
        torch.autograd.grad(script.loss(model, batch), seen)
        handle.remove()
        model.requires_grad_(True)
        return script.loss(model, batch)

    return replace(script, loss=loss)


def with_probe(model: nn.Module) -> None:
    """Add a probe, which reads states without a gradient."""
    model.probe, model.probed = nn.Linear(WIDTH, CLASSES), []
    (norm,) = changes.named(model, changes.LAST_NORM)
    norm.register_forward_hook(lambda module, inputs, output: model.probed.append(output.detach()))


def probed(script: Script) -> Script:
    """Let the probe learn the classes beside the model."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        model.probed.clear()
        plain = script.loss(model, batch)
        return plain + F.cross_entropy(model.probe(model.probed[0].mean(1)), batch["labels"])

    return replace(script, loss=loss)


def adversarial(script: Script) -> Script:
    """Add the loss with embeddings moved to where it is higher, and move them back before the step."""
    moved: list[tuple[Tensor, Tensor]] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        (embedding,) = changes.named(model, changes.EMBEDDING)
        plain = script.loss(model, batch)
        (gradient,) = torch.autograd.grad(plain, embedding.weight, retain_graph=True)
        move = _SIZE * gradient / gradient.norm().clamp(min=1e-12)
        with torch.no_grad():
            embedding.weight.add_(move)
        moved[:] = [(embedding.weight, move)]
        return plain + script.loss(model, batch)

    @torch.no_grad()
    def back(parameters: Sequence[nn.Parameter]) -> None:
        for weight, move in moved:
            weight.sub_(move)

    return replace(script, loss=loss, optimizers=with_pre_hook(script.optimizers, back))
