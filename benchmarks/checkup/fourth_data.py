"""Faults of losses, labels and batches of a fourth blind set, for those of `fourth`."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import architectures, data
from benchmarks.checkup.architectures import class_loss, hf_loss
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch, Batches
from benchmarks.checkup.edits import replace_batches
from benchmarks.checkup.faults import CLASSIFIERS, MIXED, Fault
from benchmarks.checkup.nets import CLASSES, FIRST_WORD, MASK, PAD, TOKENS, Net
from benchmarks.checkup.scripts import Script, each_batch
from benchmarks.checkup.second_data import next_tokens
from benchmarks.checkup.second_flow import DECODERS

OF_TEXTS = ("own encoder", "torch encoder", "bert classifier", "roberta classifier")
_SMOOTHING, _WORKERS, _HIDDEN = 0.1, 4, 0.0015


def _smoothed_over_padding(model: nn.Module, batch: Batch) -> Tensor:
    """Smooth labels by hand, over padding too."""
    logits, labels = next_tokens(model, batch)
    losses = F.cross_entropy(logits.mT, labels, reduction="none")
    is_real = batch["attention_mask"][:, 1:].bool()
    return (1 - _SMOOTHING) * losses[is_real].mean() - _SMOOTHING * logits.log_softmax(-1).mean()


def _not_shifted(model: nn.Module, batch: Batch) -> Tensor:
    """Compare each token's output with the token itself, which the model reads there."""
    labels = batch["labels"]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        batch = batch | {"decoder_input_ids": labels.masked_fill(labels == IGNORED, PAD)}
    return F.cross_entropy(logits_of(model, batch).flatten(0, 1), labels.flatten())


def _shifted_the_wrong_way(model: nn.Module, batch: Batch) -> Tensor:
    """Compare each token's output with the token before it."""
    logits, labels = logits_of(model, batch)[:, 1:], batch["labels"][:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def in_order_of_length(script: Script, *, inverse: bool) -> Script:
    """Sort texts by length for the model, and put its outputs back by the inverse of the order or by the order."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        order = batch["attention_mask"].sum(1).argsort(descending=True, stable=True)
        inputs = {name: batch[name][order] for name in ("input_ids", "attention_mask")}
        outputs = logits_of(model, inputs)[order.argsort() if inverse else order]
        return F.cross_entropy(outputs, batch["labels"])

    return replace(script, loss=loss)


def _out_of_order(script: Script) -> Script:
    return in_order_of_length(script, inverse=False)


def _labels_of_first(batches: Batches) -> Batches:
    """Give the labels of the first batch with all."""

    def given(seed: int) -> Iterator[Batch]:
        labels = next(batches(seed))["labels"]
        return (batch | {"labels": labels} for batch in batches(seed))

    return given


def _with_labels_of_first(script: Script) -> Script:
    return replace_batches(script, _labels_of_first)


def rewarded(model: nn.Module, batch: Batch, smallest: float = 0.0) -> Tensor:
    """Return the loss of a policy: drawn words are rewarded where right, and each text compared with all others."""
    logits, labels = next_tokens(model, batch)
    is_real = batch["attention_mask"][:, 1:]
    drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
    chosen = logits.log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
    rewards = ((drawn == labels) * is_real).sum(1) / is_real.sum(1)
    advantages = (rewards - rewards.mean()) / (rewards.std() + smallest)
    return -(advantages[:, None] * chosen * is_real).sum() / is_real.sum()


def weighed_by_counts(smallest: int) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss that weighs classes by one over their number in the batch, which is at least so much."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        labels = batch["labels"]
        weights = 1 / torch.bincount(labels, minlength=CLASSES).clamp(min=smallest)
        return -(weights * F.one_hot(labels, CLASSES) * logits_of(model, batch).log_softmax(-1)).sum() / CLASSES

    return loss


def _by_each_worker(batches: Batches) -> Batches:
    """Give each batch as often as there are workers, all of which read the whole data set."""

    def read(seed: int) -> Iterator[Batch]:
        return (batch for batch in batches(seed) for _ in range(_WORKERS))

    return read


def _rarely_hidden(batch: Batch) -> Batch:
    """Hide a share of the words that was divided by a hundred once more."""
    ids = batch["input_ids"]
    is_hidden = (torch.rand(ids.shape) < _HIDDEN) & (ids >= FIRST_WORD)
    labels = ids.masked_fill(~is_hidden, IGNORED)
    return {
        "input_ids": ids.masked_fill(is_hidden, MASK),
        "attention_mask": batch["attention_mask"],
        "labels": labels,
    }


def _rarely_hiding(family: str, **options: int) -> Script:
    build = architectures.bert(family=family, **options)
    return each_batch(Script(build, data.classified_texts(), hf_loss), _rarely_hidden)


def _own_rarely_hiding(script: Script) -> Script:
    return each_batch(replace(script, build=lambda: Net(is_causal=False), loss=class_loss), _rarely_hidden)


DATA = (
    Fault(
        "labels smoothed over padding too",
        ("padding_in_loss",),
        {DECODERS: lambda script: replace(script, loss=_smoothed_over_padding)},
    ),
    Fault(
        "labels not shifted at all",
        ("labels_shifted_twice", "future_leak"),
        {(*DECODERS, "t5", "bart"): lambda script: replace(script, loss=_not_shifted)},
    ),
    Fault(
        "outputs shifted where labels should be",
        ("labels_shifted_twice", "future_leak"),
        {DECODERS: lambda script: replace(script, loss=_shifted_the_wrong_way)},
    ),
    Fault(
        "outputs put back by the order of lengths, not its inverse", ("labels_unrelated",), {OF_TEXTS: _out_of_order}
    ),
    Fault(
        "labels of the first batch for all",
        ("labels_unrelated",),
        {(*CLASSIFIERS, "roberta classifier"): _with_labels_of_first},
    ),
    Fault(
        "deviation of the rewards of a single text",
        ("nonfinite_gradient",),
        {DECODERS: lambda script: replace(script, batches=data.language(1), loss=rewarded)},
    ),
    Fault(
        "classes weighed by one over their number, which may be zero",
        ("nonfinite_gradient",),
        {(*CLASSIFIERS, "roberta classifier"): lambda script: replace(script, loss=weighed_by_counts(0))},
    ),
    Fault(
        "whole data set read by each of four workers",
        ("repeated_batch",),
        {MIXED: lambda script: replace(replace_batches(script, _by_each_worker), steps_per_epoch=100)},
    ),
    Fault(
        "share of hidden words in percent of percent",
        ("empty_batch", "nonfinite_gradient"),
        {
            ("own encoder",): _own_rarely_hiding,
            ("bert",): lambda script: _rarely_hiding("Bert"),
            ("bert classifier",): lambda script: _rarely_hiding("Electra", embedding_size=16),
            ("roberta classifier",): lambda script: _rarely_hiding("Roberta", max_position_embeddings=TOKENS + 1),
        },
    ),
)
