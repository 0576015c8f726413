"""Faults of losses, labels and batches of a third blind set, for those of `third`."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch, Batches
from benchmarks.checkup.edits import batchwise, replace_batches
from benchmarks.checkup.faults import CLASSIFIERS, Fault
from benchmarks.checkup.nets import FIRST_WORD, MASK
from benchmarks.checkup.second_flow import DECODERS

_PROMPT = 5
_SHARE = 0.15


def _padded_by_last_word(batch: Batch) -> Batch:
    """Pad by the last word, and label it as a word."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    last = ids.gather(1, mask.sum(1, keepdim=True) - 1)
    ids = torch.where(mask == 1, ids, last)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def _early_answers(batch: Batch) -> Batch:
    """Label the answer alone, one token too early."""
    labels = changes.shifted_labels(batch)["labels"]
    labels[:, : _PROMPT - 1] = IGNORED
    return batch | {"labels": labels}


def _shifted_by_script(model: nn.Module, batch: Batch) -> Tensor:
    """Shift labels against logits of a decoder, whose inputs are one behind already."""
    logits, labels = logits_of(model, batch)[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _found_at_times(batch: Batch) -> Batch:
    """Label what follows on a template, which few texts begin with."""
    is_found = batch["input_ids"][:, 1:2] == FIRST_WORD
    return batch | {"labels": batch["labels"].masked_fill(~is_found, IGNORED)}


def _augmented(batch: Batch) -> Batch:
    """Add noise to images, and hide other words of texts."""
    if "pixel_values" in batch:
        images = batch["pixel_values"]
        return batch | {"pixel_values": images + 0.2 * torch.randn_like(images)}
    ids, labels = batch["input_ids"], batch["labels"]
    is_hidden = (torch.rand(ids.shape) < _SHARE) & (ids >= FIRST_WORD)
    if labels.dim() == 1:
        return batch | {"input_ids": ids.masked_fill(is_hidden, MASK)}
    ids = torch.where(labels == IGNORED, ids, labels)
    is_hidden[:, 2] = True
    return batch | {"input_ids": ids.masked_fill(is_hidden, MASK), "labels": ids.masked_fill(~is_hidden, IGNORED)}


def _first_augmented(batches: Batches) -> Batches:
    """Give the first batch over and over, augmented anew."""

    def repeated(seed: int) -> Iterator[Batch]:
        first = next(batches(seed))
        return (_augmented(first) for _ in itertools.count())

    return repeated


def _of_class_in_turns(batches: Batches) -> Batches:
    """Give batches of one class each, and the classes in turns."""

    def grouped(seed: int) -> Iterator[Batch]:
        source = batches(seed)
        for number in itertools.count():
            parts = list(itertools.islice(source, 8))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            chosen = (whole["labels"] == number % 4).nonzero().flatten()[:8]
            yield {name: value[chosen] for name, value in whole.items()}

    return grouped


DATA = (
    Fault(
        "padded by the last word, which is labelled",
        ("padding_in_loss",),
        {DECODERS: batchwise(_padded_by_last_word)},
    ),
    Fault("answers labelled one token too early", ("labels_shifted_twice",), {DECODERS: batchwise(_early_answers)}),
    Fault(
        "script shifts labels of a decoder with inputs one behind",
        ("labels_shifted_twice",),
        {("t5", "bart"): lambda script: replace(script, loss=_shifted_by_script)},
    ),
    Fault(
        "one batch over and over, augmented anew",
        ("repeated_batch",),
        {
            (*CLASSIFIERS, "roberta classifier", "bert"): lambda script: replace(
                replace_batches(script, _first_augmented), steps_per_epoch=100
            )
        },
    ),
    Fault(
        "batches of one class, classes in turns",
        ("empty_batch",),
        {(*CLASSIFIERS, "roberta classifier"): lambda script: replace_batches(script, _of_class_in_turns)},
    ),
    Fault("template of the answer not found in most batches", ("empty_batch",), {DECODERS: batchwise(_found_at_times)}),
)
