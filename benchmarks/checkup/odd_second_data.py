"""Oddities of sound batches of the second blind set, for `odd_second`."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional as F

from benchmarks.checkup.data import Batch, Batches
from benchmarks.checkup.edits import replace_batches
from benchmarks.checkup.nets import BEGIN, FIRST_WORD, PAD
from benchmarks.checkup.scripts import Script

_OLD = 2
_KEPT = 64


def prompted(batch: Batch) -> Batch:
    """Put the same three tokens in front of each text."""
    prompt = torch.tensor([BEGIN, FIRST_WORD, FIRST_WORD + 9]).expand(len(batch["labels"]), 3)
    ids = torch.cat([prompt, batch["input_ids"][:, :-3]], 1)
    return batch | {"input_ids": ids, "attention_mask": F.pad(batch["attention_mask"][:, :-3], (3, 0), value=1)}


def seen_twice(batch: Batch) -> Batch:
    """Take half of the images twice, each time with other noise."""
    images, labels = batch["pixel_values"].chunk(2)[0].repeat(2, 1, 1, 1), batch["labels"].chunk(2)[0].repeat(2)
    return {"pixel_values": images + 0.2 * torch.randn_like(images), "labels": labels}


def with_replacement(script: Script) -> Script:
    """Draw from 64 samples, and each as often as chance has it."""

    def drawing(batches: Batches) -> Batches:
        def drawn(seed: int) -> Iterator[Batch]:
            random, parts = torch.Generator().manual_seed(seed), list(itertools.islice(batches(seed), _KEPT // 8))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            while True:
                rows = torch.randint(_KEPT, (8,), generator=random)
                yield {name: value[rows] for name, value in whole.items()}

        return drawn

    return replace(replace_batches(script, drawing), steps_per_epoch=_KEPT // 8)


def with_old_samples(batches: Batches) -> Batches:
    """Replace two samples of each batch by some of the first batches, so that they are not forgotten."""

    def mixed(seed: int) -> Iterator[Batch]:
        random, parts = torch.Generator().manual_seed(seed), list(itertools.islice(batches(seed + 500), 4))
        kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for batch in batches(seed):
            rows = torch.randperm(len(kept["labels"]), generator=random)[:_OLD]
            yield {name: torch.cat([value[_OLD:], kept[name][rows]]) for name, value in batch.items()}

    return mixed


def two_classes(batches: Batches) -> Batches:
    """Let each batch have two of the classes, which change from batch to batch."""

    def grouped(seed: int) -> Iterator[Batch]:
        source = batches(seed)
        for number in itertools.count():
            parts = list(itertools.islice(source, 4))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            chosen = (whole["labels"] % 2 == number % 2).nonzero().flatten()[:8]
            yield {name: value[chosen] for name, value in whole.items()}

    return grouped


def of_similar_length(batches: Batches) -> Batches:
    """Group texts by their length."""

    def grouped(seed: int) -> Iterator[Batch]:
        source = batches(seed)
        while True:
            parts = list(itertools.islice(source, 4))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            order = whole["attention_mask"].sum(1).argsort()
            chunks = [order[start : start + 8] for start in range(0, len(order), 8)]
            for at in torch.randperm(len(chunks), generator=torch.Generator().manual_seed(seed)).tolist():
                rows = chunks[at]
                longest = int(whole["attention_mask"][rows].sum(1).max())
                yield {
                    name: each[rows, :longest].contiguous() if each.dim() == 2 else each[rows]
                    for name, each in whole.items()
                }

    return grouped


def shifted_once(batch: Batch) -> Batch:
    """Cut inputs and labels so that they belong together, for a loss that does not shift."""
    return {
        "input_ids": batch["input_ids"][:, :-1],
        "attention_mask": batch["attention_mask"][:, :-1],
        "labels": batch["labels"][:, 1:],
    }


def own_decoder_inputs(batch: Batch) -> Batch:
    """Give the decoder its inputs, one behind the labels."""
    return batch | {"decoder_input_ids": F.pad(batch["labels"].clamp(min=PAD)[:, :-1], (1, 0), value=PAD)}
