"""Endless batches of small tasks that can be learned."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Generator, Tensor

from benchmarks.checkup.nets import BEGIN, CLASSES, END, FIRST_WORD, MASK, PAD, TOKENS, VOCABULARY

Batch = dict[str, Tensor]
Batches = Callable[[int], Iterator[Batch]]
Side = Literal["left", "right"]
BATCH_SIZE, IMAGE, PATCH, IGNORED = 8, 16, 4, -100
_WORDS = VOCABULARY - FIRST_WORD
_MULTIPLIERS, _INCREMENTS = torch.tensor([1, 5, 7, 11]), torch.tensor([1, 2, 3, 5])


def texts(random: Generator, size: int = BATCH_SIZE, side: Side = "right", shortest: int = 6) -> tuple[Tensor, ...]:
    """Return ids, mask and classes of texts, in which each word follows from the one before by the rule of a class."""
    classes = torch.randint(CLASSES, (size,), generator=random)
    words = [torch.randint(_WORDS, (size,), generator=random)]
    for _ in range(TOKENS - 2):
        words.append((words[-1] * _MULTIPLIERS[classes] + _INCREMENTS[classes]) % _WORDS)
    ids = torch.cat([torch.full((size, 1), BEGIN), torch.stack(words, 1) + FIRST_WORD], 1)
    lengths = torch.randint(shortest, TOKENS + 1, (size,), generator=random)
    lengths[0] = TOKENS
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    ids = torch.where(mask == 1, ids, PAD)
    if side == "left":
        order = (torch.arange(TOKENS) + lengths[:, None]) % TOKENS
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    return ids, mask, classes


def language(size: int = BATCH_SIZE, side: Side = "right", shortest: int = 6) -> Batches:
    """Return batches for the prediction of the next token; padding has no label."""

    def batches(seed: int) -> Iterator[Batch]:
        random = Generator().manual_seed(seed)
        while True:
            ids, mask, _ = texts(random, size, side, shortest)
            yield {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}

    return batches


def pairs(seed: int) -> Iterator[Batch]:
    """Yield the first halves of texts, then what follows on each, padded to the same length."""
    random = Generator().manual_seed(seed)
    half = TOKENS // 2
    while True:
        ids, _, _ = texts(random, shortest=TOKENS)
        both = torch.cat([ids[:, :half], torch.cat([ids[:, :1], ids[:, half:-1]], 1)])
        lengths = torch.randint(half - 3, half + 1, (len(both),), generator=random)
        lengths[0] = half
        mask = (torch.arange(half) < lengths[:, None]).long()
        yield {"input_ids": both.masked_fill(mask == 0, PAD), "attention_mask": mask}


def masked_language(size: int = BATCH_SIZE, shortest: int = 6) -> Batches:
    """Return batches in which a quarter of the words is hidden and is to be found."""

    def batches(seed: int) -> Iterator[Batch]:
        random = Generator().manual_seed(seed)
        while True:
            ids, mask, _ = texts(random, size, shortest=shortest)
            hidden = (torch.rand(ids.shape, generator=random) < 0.25) & (ids >= FIRST_WORD)
            hidden[:, 2] = True
            labels = ids.masked_fill(~hidden, IGNORED)
            yield {"input_ids": ids.masked_fill(hidden, MASK), "attention_mask": mask, "labels": labels}

    return batches


def classified_texts(size: int = BATCH_SIZE, shortest: int = 6) -> Batches:
    """Return batches of texts and their classes."""

    def batches(seed: int) -> Iterator[Batch]:
        random = Generator().manual_seed(seed)
        while True:
            ids, mask, classes = texts(random, size, shortest=shortest)
            yield {"input_ids": ids, "attention_mask": mask, "labels": classes}

    return batches


def reversed_texts(size: int = BATCH_SIZE, shortest: int = 6) -> Batches:
    """Return batches of texts and of the same texts from the end to the start."""

    def batches(seed: int) -> Iterator[Batch]:
        random = Generator().manual_seed(seed)
        while True:
            ids, mask, _ = texts(random, size, shortest=shortest)
            labels = torch.full_like(ids, IGNORED)
            for row, length in enumerate(mask.sum(1).tolist()):
                labels[row, : length - 1] = ids[row, 1:length].flip(0)
                labels[row, length - 1] = END
            yield {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return batches


def images(size: int = BATCH_SIZE) -> Batches:
    """Return batches of noise with a bright quarter, which is the class."""

    def batches(seed: int) -> Iterator[Batch]:
        random = Generator().manual_seed(seed)
        half = IMAGE // 2
        while True:
            classes = torch.randint(CLASSES, (size,), generator=random)
            pixels = torch.randn(size, 3, IMAGE, IMAGE, generator=random) * 0.5
            for row, quarter in enumerate(classes.tolist()):
                top, left = half * (quarter // 2), half * (quarter % 2)
                pixels[row, :, top : top + half, left : left + half] += 1
            yield {"pixel_values": pixels, "labels": classes}

    return batches
