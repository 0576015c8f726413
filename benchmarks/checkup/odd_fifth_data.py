"""Oddities of sound batches of a fifth blind set, for `odd_fifth`."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.checkup.data import IGNORED, Batch, Batches, language
from benchmarks.checkup.nets import BEGIN, END, FIRST_WORD, MASK, PAD, TOKENS, VOCABULARY
from benchmarks.checkup.scripts import Script, each_batch

_SPAN, _TURN, _BORDER = 3, 3, 2


def pairs_hidden(batch: Batch) -> Batch:
    """Hide pairs of words that stand together."""
    ids = batch["input_ids"]
    begins = torch.rand(ids.shape) < 0.15
    begins[:, 2] = True
    is_hidden = (begins | begins.roll(1, 1)) & (ids >= FIRST_WORD)
    return batch | {"input_ids": ids.masked_fill(is_hidden, MASK), "labels": ids.masked_fill(~is_hidden, IGNORED)}


def some_replaced(batch: Batch) -> Batch:
    """Replace a third of the words by others, which are to be found out."""
    ids = batch["input_ids"]
    is_replaced = (torch.rand(ids.shape) < 0.3) & (ids >= FIRST_WORD)
    read = torch.where(is_replaced, torch.randint_like(ids, FIRST_WORD, VOCABULARY), ids)
    return batch | {"input_ids": read, "labels": (read != ids).long().masked_fill(ids < FIRST_WORD, IGNORED)}


def halves_in_order(batch: Batch) -> Batch:
    """Swap the halves of every other text, on average, and ask whether they are swapped."""
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1, keepdim=True)
    is_swapped = (torch.rand(len(ids), 1) < 0.5).long()
    places = torch.arange(ids.shape[1])
    words = lengths - 1
    order = torch.where((places >= 1) & (places <= words), (places - 1 + is_swapped * (words // 2)) % words + 1, places)
    return batch | {"input_ids": ids.gather(1, order), "labels": is_swapped[:, 0]}


def spans_hidden(batch: Batch) -> Batch:
    """Replace three words of each text by one token, and ask for them."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    begins = 1 + (torch.rand(len(ids)) * (mask.sum(1) - _SPAN - 1)).long()
    places = torch.arange(ids.shape[1] - _SPAN + 1)
    read = ids.gather(1, places + (places > begins[:, None]) * (_SPAN - 1))
    hidden = ids.gather(1, begins[:, None] + torch.arange(_SPAN))
    labels = torch.cat([hidden, torch.full((len(ids), 1), END)], 1)
    read = read.scatter(1, begins[:, None], MASK)
    return {"input_ids": read, "attention_mask": (read != PAD).long(), "labels": labels}


def middle_at_the_end(batch: Batch) -> Batch:
    """Put three words of each text behind the others, and label the last words only from there."""
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1)
    begins = 1 + (torch.rand(len(ids)) * (lengths - _SPAN - 1)).long()
    places = torch.arange(ids.shape[1])
    is_middle = (places >= begins[:, None]) & (places < begins[:, None] + _SPAN)
    order = (places + ids.shape[1] * is_middle + 2 * ids.shape[1] * (batch["attention_mask"] == 0)).argsort(1)
    return batch | {name: batch[name].gather(1, order) for name in ("input_ids", "labels")}


def _two_halves(batch: Batch) -> Batch:
    half = batch["input_ids"].shape[1] // 2
    ids = torch.cat([batch["input_ids"][:, :half], batch["input_ids"].roll(1, 0)[:, :half]], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def packed_without_borders(script: Script) -> Script:
    """Put halves of two texts into one row, with no borders in mask and positions, as for GPT."""
    return each_batch(replace(script, batches=language(shortest=TOKENS)), _two_halves)


def answers_in_turns(batch: Batch) -> Batch:
    """Label three words, not the next three, and so on, as answers in a talk."""
    is_asked = torch.arange(batch["labels"].shape[1]) // _TURN % 2 == 0
    return batch | {"labels": batch["labels"].masked_fill(is_asked, IGNORED)}


def some_read_wrongly(batch: Batch) -> Batch:
    """Let a tenth of the words be read as others, with the right labels."""
    ids = batch["input_ids"]
    is_wrong = (torch.rand(ids.shape) < 0.1) & (ids >= FIRST_WORD)
    return batch | {"input_ids": torch.where(is_wrong, torch.randint_like(ids, FIRST_WORD, VOCABULARY), ids)}


def some_twice(batch: Batch) -> Batch:
    """Take two samples of each batch twice."""
    return {name: torch.cat([value[:6], value[4:6]]) for name, value in batch.items()}


def grey(batch: Batch) -> Batch:
    """Give images three channels that are alike."""
    pixels = batch["pixel_values"]
    return batch | {"pixel_values": pixels.mean(1, keepdim=True).expand_as(pixels)}


def erased(batch: Batch) -> Batch:
    """Erase a square of each image."""
    pixels = batch["pixel_values"].clone()
    for image in pixels:
        top, left = torch.randint(pixels.shape[-1] - 4, (2,)).tolist()
        image[:, top : top + 4, left : left + 4] = 0
    return batch | {"pixel_values": pixels}


def moved(batch: Batch) -> Batch:
    """Move each image by up to two pixels."""
    shifts = torch.randint(-_BORDER, _BORDER + 1, (len(batch["labels"]), 2)).tolist()
    images = zip(batch["pixel_values"], shifts, strict=True)
    return batch | {"pixel_values": torch.stack([image.roll(shift, (1, 2)) for image, shift in images])}


def begin_forgotten(batch: Batch) -> Batch:
    """Leave the begin's token out."""
    cut = {name: value[:, 1:] if value.dim() == 2 else value for name, value in batch.items()}
    keep = cut["attention_mask"].sum(1) > 0
    return {name: value[keep].contiguous() for name, value in cut.items()}


def of_two_lengths(batches: Batches) -> Batches:
    """Give short rows at most steps, and long ones at every fourth."""

    def cut(seed: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(seed)):
            length = 16 if number % 4 == 3 else 8
            yield {name: value[:, :length].contiguous() for name, value in batch.items()}

    return cut


def begun_by_classes(batch: Batch) -> Batch:
    """Let the first token tell the last word's remainder, a task's name as it were."""
    ids = batch["input_ids"].clone()
    ids[:, 0] = torch.where(ids[:, 1] % 2 == 0, BEGIN, MASK)
    return batch | {"input_ids": ids}
