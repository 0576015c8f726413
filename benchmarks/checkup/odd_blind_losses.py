"""Oddities of sound losses and batches that no check was tuned on."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.checkup.architectures import pretrained
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch, Batches
from benchmarks.checkup.edits import prepared, replace_batches
from benchmarks.checkup.nets import CLASSES, FIRST_WORD, MASK, PAD, VOCABULARY
from benchmarks.checkup.odd_trainings import name_of, pretrained_model
from benchmarks.checkup.scripts import Change, Script, adamw, each_batch

LossOfLogits = Callable[[Tensor, Batch], Tensor]
_RARE = 3
_KEPT_SHARE = 0.7


def with_loss_of_logits(loss_of: LossOfLogits) -> Change:
    """Return the change of scripts that computes the loss of the logits and the batch."""
    return lambda script: replace(script, loss=lambda model, batch: loss_of(logits_of(model, batch), batch))


def focal(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross entropy that counts hard samples more."""
    losses = F.cross_entropy(logits, batch["labels"], reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def weighted(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross entropy that counts the rare class eight times."""
    weights = torch.ones(CLASSES)
    weights[1] = 8.0
    return F.cross_entropy(logits, batch["labels"], weights)


def of_several(logits: Tensor, batch: Batch) -> Tensor:
    """Return the binary cross entropy of labels that hold at the same time."""
    labels = torch.stack([batch["labels"] % 2, batch["labels"] // 2], 1).float()
    return F.binary_cross_entropy_with_logits(logits[:, :2], labels)


def agreeing(script: Script) -> Script:
    """Let two passes with other dropout agree."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        first, second = logits_of(model, batch), logits_of(model, batch)
        divergence = F.kl_div(first.log_softmax(-1), second.softmax(-1), reduction="batchmean")
        return F.cross_entropy(first, batch["labels"]) + F.cross_entropy(second, batch["labels"]) + divergence

    return replace(script, loss=loss)


def _log_likelihoods(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean log-likelihood of each text."""
    logits = logits_of(model, batch)[:, :-1].log_softmax(-1)
    mask = batch["attention_mask"][:, 1:]
    chosen = logits.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1) * mask
    return chosen.sum(1) / mask.sum(1)


def _with_rejected(batch: Batch) -> Batch:
    """Add texts whose words are moved by seven places, so that they follow no rule at one of them."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    shifted = ids.roll(7, 1).masked_fill(mask == 0, PAD).clamp(min=FIRST_WORD) * mask
    rejected = torch.cat([ids[:, :1], shifted[:, 1:]], 1)
    return {"input_ids": torch.cat([ids, rejected]), "attention_mask": mask.repeat(2, 1)}


def preferences(script: Script) -> Script:
    """Prefer texts to worse ones, by more than a frozen trained model does."""
    name = name_of(script)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            known = _log_likelihoods(pretrained_model(name), batch)
        chosen, rejected = (_log_likelihoods(model, batch) - known).chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()

    return replace(each_batch(pretrained(name), _with_rejected), loss=loss, optimizers=adamw(5e-4))


def with_cache(script: Script) -> Script:
    """Read the first half of the texts without a loss, and the second half with the cache of the first."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        half = ids.shape[1] // 2
        first = model(input_ids=ids[:, :half], attention_mask=mask[:, :half], use_cache=True)
        cache = first.past_key_values
        second = model(input_ids=ids[:, half:], attention_mask=mask, past_key_values=cache, use_cache=True)
        return F.cross_entropy(second.logits[:, :-1].flatten(0, 1), labels[:, half + 1 :].flatten())

    return replace(script, loss=loss)


def triplets(script: Script) -> Script:
    """Ask for a margin between the right continuation and that of the next text."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        anchors, positives = F.normalize(model(**batch), dim=-1).chunk(2)
        return F.triplet_margin_loss(anchors, positives, positives.roll(1, 0), margin=0.5)

    return replace(script, loss=loss)


def momentum_teacher(script: Script) -> Script:
    """Learn the labels, and what a moving average of the model says, which is no part of it."""
    teachers: list[nn.Module] = []

    def begin(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            teachers[:] = [copy.deepcopy(model).eval().requires_grad_(False)]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = logits_of(model, batch)
        with torch.no_grad():
            target = logits_of(teachers[0], batch).softmax(-1)
        return F.cross_entropy(logits, batch["labels"]) + F.cross_entropy(logits, target)

    @torch.no_grad()
    def follow(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        for old, new in zip(teachers[0].parameters(), model.parameters(), strict=True):
            old.lerp_(new, 0.05)

    return replace(script, loss=loss, before_step=begin, after_step=follow)


def mixed_states(script: Script) -> Script:
    """Mix the states of samples after the first block in training, and their losses alike."""

    def mix(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return _KEPT_SHARE * output + (1 - _KEPT_SHARE) * output.roll(1, 0) if module.training else output

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = logits_of(model, batch), batch["labels"]
        mixed = (1 - _KEPT_SHARE) * F.cross_entropy(logits, labels.roll(1, 0))
        return _KEPT_SHARE * F.cross_entropy(logits, labels) + mixed

    def prepare(model: nn.Module) -> None:
        model.blocks[0].register_forward_hook(mix)

    return replace(prepared(prepare)(script), loss=loss)


def unlearning(script: Script) -> Script:
    """Ascend the loss of a trained model."""
    return replace(pretrained(name_of(script)), loss=lambda model, batch: -script.loss(model, batch))


def unlearning_half(script: Script) -> Script:
    """Ascend the loss of half of the texts, and descend that of the others."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        learned, forgotten = (
            script.loss(model, {name: value.chunk(2)[part] for name, value in batch.items()}) for part in (0, 1)
        )
        return learned - 0.5 * forgotten

    return replace(pretrained(name_of(script)), loss=loss)


def one_word_at_times(script: Script) -> Script:
    """Cut every third batch to the first word."""

    def at_times(batches: Batches) -> Batches:
        def cut(seed: int) -> Iterator[Batch]:
            for number, batch in enumerate(batches(seed)):
                is_cut = number % 3 == 1
                yield {name: value[:, 1:2] if is_cut and value.dim() == 2 else value for name, value in batch.items()}

        return cut

    return replace_batches(script, at_times)


def imbalanced(script: Script) -> Script:
    """Let three of four batches have the common class only, and weigh the rare one."""

    def rarely(batches: Batches) -> Batches:
        def drawn(seed: int) -> Iterator[Batch]:
            for number, batch in enumerate(batches(seed)):
                common = (batch["labels"] != _RARE).nonzero().flatten()
                rows = common if number % 4 != _RARE and len(common) else torch.arange(len(batch["labels"]))
                labels = (batch["labels"][rows] == _RARE).long()
                yield {name: value[rows] for name, value in batch.items()} | {"labels": labels}

        return drawn

    return with_loss_of_logits(weighted)(replace_batches(script, rarely))


def packed_by_positions(batch: Batch) -> Batch:
    """Put all texts into one row, of which only the positions tell where each begins."""
    is_real = batch["attention_mask"].bool()
    places = torch.arange(is_real.shape[1]).expand_as(is_real)
    labels = batch["labels"].masked_fill(places == 0, IGNORED)
    return {
        "input_ids": batch["input_ids"][is_real][None],
        "labels": labels[is_real][None],
        "position_ids": places[is_real][None],
    }


def partly_random(batch: Batch) -> Batch:
    """Replace some of the hidden words by random ones, and show some."""
    random, hidden = torch.rand(batch["labels"].shape), batch["labels"] != IGNORED
    ids = batch["input_ids"].clone()
    ids[hidden & (random < 0.1)] = torch.randint(FIRST_WORD, VOCABULARY, ()).item()
    is_shown = hidden & (random > 0.9)
    ids[is_shown] = batch["labels"][is_shown]
    return batch | {"input_ids": ids}


def words_dropped(batch: Batch) -> Batch:
    """Hide some words."""
    is_hidden = (torch.rand(batch["input_ids"].shape) < 0.15) & (batch["input_ids"] >= FIRST_WORD)
    return batch | {"input_ids": batch["input_ids"].masked_fill(is_hidden, MASK)}


def noisy_labels(batch: Batch) -> Batch:
    """Draw a fifth of the labels anew."""
    labels = batch["labels"]
    return batch | {"labels": torch.where(torch.rand(len(labels)) < 0.2, torch.randint_like(labels, CLASSES), labels)}


def mixed_images(batch: Batch) -> Batch:
    """Mix images of the batch, and their labels alike."""
    labels = F.one_hot(batch["labels"], CLASSES).float()
    return {
        name: _KEPT_SHARE * value + (1 - _KEPT_SHARE) * value.roll(1, 0)
        for name, value in (("pixel_values", batch["pixel_values"]), ("labels", labels))
    }


def last_only(batch: Batch) -> Batch:
    """Label the last real word only."""
    lengths = batch["attention_mask"].sum(1)
    is_last = torch.arange(batch["labels"].shape[1]) == (lengths - 1)[:, None]
    return batch | {"labels": batch["labels"].masked_fill(~is_last, IGNORED)}
