"""Faults of losses, labels and batches of the second blind set, for those of `second`."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import architectures, changes, data
from benchmarks.checkup.architectures import class_loss, hf_loss
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch, Batches
from benchmarks.checkup.edits import batchwise, replace_batches
from benchmarks.checkup.faults import CLASSIFIERS, Fault
from benchmarks.checkup.nets import BEGIN, FIRST_WORD, MASK, PAD, TOKENS, Net
from benchmarks.checkup.scripts import Script, each_batch
from benchmarks.checkup.second_flow import DECODERS

_OF_TEXTS = ("own encoder", "torch encoder", "bert classifier", "roberta classifier")
_TOKEN_LABELS = ("own causal", "llama", "gpt2", "bert", "t5", "bart")
_FEW = 8


def next_tokens(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of the next tokens [batch, tokens, words], and these tokens."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return logits_of(model, inputs)[:, :-1], batch["input_ids"][:, 1:]


def _weighed_by_inputs(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh losses by the mask of the inputs, not by that of the labels one later."""
    logits, labels = next_tokens(model, batch)
    weights = batch["attention_mask"][:, :-1]
    return (F.cross_entropy(logits.mT, labels, reduction="none") * weights).sum() / weights.sum()


def _padding_hidden(batch: Batch) -> Batch:
    """Hide tokens wherever they stand, at padding too."""
    ids = batch["input_ids"]
    hidden = torch.rand(ids.shape) < 0.25
    hidden[:, 2] = True
    return {
        "input_ids": ids.masked_fill(hidden, MASK),
        "attention_mask": batch["attention_mask"],
        "labels": ids.masked_fill(~hidden, IGNORED),
    }


def _hiding(family: str, **options: int) -> Script:
    build = architectures.bert(family=family, **options)
    return each_batch(Script(build, data.classified_texts(), hf_loss), _padding_hidden)


def _own_hiding(script: Script) -> Script:
    return each_batch(replace(script, build=lambda: Net(is_causal=False), loss=class_loss), _padding_hidden)


def _moved_inputs(batch: Batch) -> Batch:
    """Put a token in front of the inputs, so that labels stand one later, for a model that moves them itself."""
    ids, mask = (
        F.pad(batch[name][:, :-1], (1, 0), value=value) for name, value in (("input_ids", BEGIN), ("attention_mask", 1))
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": batch["labels"]}


def _moved_for_decoder(batch: Batch) -> Batch:
    """Move labels for a decoder that is given inputs, which stand one later already."""
    labels = batch["labels"]
    inputs = F.pad(labels[:, :-1], (1, 0), value=PAD).masked_fill(F.pad(labels[:, :-1], (1, 0), value=PAD) < 0, PAD)
    return batch | {"decoder_input_ids": inputs, "labels": F.pad(labels[:, 1:], (0, 1), value=IGNORED)}


def _moved_twice(batch: Batch) -> Batch:
    return changes.shifted_labels(changes.shifted_labels(batch))


def _by_appearance(batch: Batch) -> Batch:
    """Number classes as they come in the batch."""
    numbers: dict[int, int] = {}
    labels = [numbers.setdefault(label, len(numbers)) for label in batch["labels"].tolist()]
    return batch | {"labels": torch.tensor(labels)}


def _prompt_only(batch: Batch) -> Batch:
    """Cut texts away behind a long prompt, and images to their black border."""
    if "pixel_values" in batch:
        return batch | {"pixel_values": torch.zeros_like(batch["pixel_values"])}
    prompt = torch.cat([torch.tensor([BEGIN]), torch.arange(FIRST_WORD, FIRST_WORD + TOKENS - 1)])
    ids = prompt.expand_as(batch["input_ids"]).clone()
    return batch | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _masked_cosines(script: Script) -> Script:
    """Add cosines of neighbours, whose norms are zero where padding was masked."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        states = next_tokens(model, batch)[0] * batch["attention_mask"][:, :-1, None]
        states = states / states.norm(dim=-1, keepdim=True)
        return script.loss(model, batch) + 0.01 * (states[:, 1:] * states[:, :-1]).sum(-1).mean()

    return replace(script, loss=loss)


def _perplexity_of_sum(script: Script) -> Script:
    """Train on the exponential of the loss, which is summed over all labels."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return (script.loss(model, batch) * (batch["labels"] != IGNORED).sum()).exp()

    return replace(script, loss=loss)


def _from_first_samples(batches: Batches) -> Batches:
    """Draw each batch from the first few samples."""

    def drawn(seed: int) -> Iterator[Batch]:
        random, batch = torch.Generator().manual_seed(seed), next(batches(seed))
        for _ in itertools.count():
            rows = torch.randint(_FEW, (_FEW,), generator=random)
            yield {name: value[rows] for name, value in batch.items()}

    return drawn


def _with_same_batch_between(batches: Batches) -> Batches:
    """Give the first batch again and again, each time before a new one."""

    def between(seed: int) -> Iterator[Batch]:
        first = next(batches(seed))
        return (each for batch in itertools.islice(batches(seed), 1, None) for each in (first, batch))

    return between


def _sorted_by_class(batches: Batches) -> Batches:
    """Read samples in the order of their classes."""

    def read(seed: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(seed)):
            label = number // 50 % 4
            yield from _of_class(batches, seed + number, label, batch)

    return read


def _of_class(batches: Batches, seed: int, label: int, like: Batch) -> Iterator[Batch]:
    found = [{name: value[batch["labels"] == label] for name, value in batch.items()} for batch in _some(batches, seed)]
    size = len(like["labels"])
    yield {name: torch.cat([each[name] for each in found])[:size] for name in like}


def _some(batches: Batches, seed: int) -> Iterator[Batch]:
    return itertools.islice(batches(1000 + seed), 12)


def _first_sample_only(batch: Batch) -> Batch:
    return {name: value[:1].expand_as(value).clone() for name, value in batch.items()}


DATA = (
    Fault(
        "losses weighed by the mask of the inputs",
        ("padding_in_loss",),
        {DECODERS: lambda script: replace(script, loss=_weighed_by_inputs)},
    ),
    Fault(
        "padding hidden and to be found",
        ("padding_in_loss",),
        {
            ("own encoder",): _own_hiding,
            ("bert",): lambda script: _hiding("Bert"),
            ("bert classifier",): lambda script: _hiding("Electra", embedding_size=16),
            ("roberta classifier",): lambda script: _hiding("Roberta", max_position_embeddings=TOKENS + 1),
        },
    ),
    Fault(
        "inputs moved by the script, labels by the model",
        ("labels_shifted_twice",),
        {DECODERS: batchwise(_moved_inputs), ("t5", "bart"): batchwise(_moved_for_decoder)},
    ),
    Fault(
        "labels shifted by data set, collator and model", ("labels_shifted_twice",), {DECODERS: batchwise(_moved_twice)}
    ),
    Fault(
        "classes numbered as they come in each batch",
        ("labels_unrelated",),
        {(*CLASSIFIERS, "roberta classifier"): lambda script: each_batch(script, _by_appearance)},
    ),
    Fault(
        "texts cut away behind a prompt, images to their border",
        ("labels_unrelated",),
        {(*CLASSIFIERS, "roberta classifier"): lambda script: each_batch(script, _prompt_only)},
    ),
    Fault("masked states divided by their norms", ("nonfinite_gradient",), {DECODERS: _masked_cosines}),
    Fault("perplexity of a summed loss", ("nonfinite_gradient",), {_TOKEN_LABELS: _perplexity_of_sum}),
    Fault(
        "batches drawn from the first eight samples",
        ("repeated_batch",),
        {
            ("own causal", "own encoder", "llama", "bert classifier", "t5", "vit"): lambda script: replace(
                replace_batches(script, _from_first_samples), steps_per_epoch=100
            )
        },
    ),
    Fault(
        "first batch again before each new one",
        ("repeated_batch",),
        {
            ("own causal", "own encoder", "llama", "bert", "t5", "vit"): lambda script: replace(
                replace_batches(script, _with_same_batch_between), steps_per_epoch=100
            )
        },
    ),
    Fault(
        "samples read in the order of their classes",
        ("empty_batch",),
        {(*CLASSIFIERS, "roberta classifier"): lambda script: replace_batches(script, _sorted_by_class)},
    ),
    Fault(
        "collator that takes the first sample for all",
        ("empty_batch", "repeated_batch"),
        {(*CLASSIFIERS, "roberta classifier"): batchwise(_first_sample_only)},
    ),
)
