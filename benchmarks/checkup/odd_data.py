"""Oddities of sound batches."""

from dataclasses import replace

import torch

from benchmarks.checkup import changes, data, nets
from benchmarks.checkup.data import Batch
from benchmarks.checkup.scripts import Script, each_batch


def prefix(batch: Batch) -> Batch:
    """Let the first six tokens see one another, and predict the others."""
    tokens = batch["input_ids"].shape[1]
    allowed = changes.square(tokens).tril()
    allowed[:6, :6] = True
    labels = batch["labels"].clone()
    labels[:, :6] = data.IGNORED
    return changes.with_mask(lambda tokens: allowed)(batch) | {"labels": labels}


def packed(batch: Batch) -> Batch:
    """Put two texts into one sequence, apart by mask and positions."""
    size, tokens = batch["input_ids"].shape
    half = tokens // 2
    allowed = torch.block_diag(changes.square(half), changes.square(half)).bool().tril()
    ids = torch.cat([batch["input_ids"][:, :half], batch["input_ids"].roll(1, 0)[:, :half]], 1)
    labels = ids.clone()
    labels[:, half] = data.IGNORED
    positions = torch.arange(half).repeat(2).expand(size, tokens)
    mask = allowed.expand(size, 1, tokens, tokens)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}


def cut_to_longest(batch: Batch) -> Batch:
    """Leave the longest text out, and cut the others to the length of the next one."""
    batch = {name: value[1:] for name, value in batch.items()}
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: value[:, :longest].contiguous() if value.dim() == 2 else value for name, value in batch.items()}


def answers_only(batch: Batch) -> Batch:
    """Leave the first five tokens without labels."""
    labels = batch["labels"].clone()
    labels[:, :5] = data.IGNORED
    return batch | {"labels": labels}


def padded_with_end(batch: Batch) -> Batch:
    """Pad with the token of the end, of which the first one has a label."""
    ids, mask = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, nets.END), batch["attention_mask"]
    labels, rows = batch["labels"].clone(), torch.arange(len(ids))
    lengths = mask.sum(1)
    at = lengths.clamp(max=ids.shape[1] - 1)
    labels[rows, at] = torch.where(lengths < ids.shape[1], nets.END, labels[rows, at])
    mask = mask.clone()
    mask[rows, at] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def rare_class(batch: Batch) -> Batch:
    """Three texts, of which most have the common class."""
    few = {name: value[:3] for name, value in batch.items()}
    return few | {"labels": (few["labels"] == 3).long()}


def packed_texts(script: Script) -> Script:
    """Return the script with two whole texts in each sequence."""
    return each_batch(replace(script, batches=data.language(shortest=nets.TOKENS)), packed)


def left_padded(script: Script) -> Script:
    """Return the script with padding on the left and a mask."""
    script = replace(script, batches=data.language(side="left"))
    return script if isinstance(script.build(), nets.Net) else each_batch(script, changes.true_positions)
