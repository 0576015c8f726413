"""Five tasks to learn, each with batches and architectures that can learn it."""

import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from benchmarks.texts import Sentences, read_tsv, source_code
from benchmarks.verdicts import architectures as arch

Batch = dict[str, Tensor]
IGNORED = -100


@dataclass(frozen=True)
class Task:
    """A task whose measure is the accuracy of the tokens that have a label.

    Attributes:
        name: of the task.
        architectures: by name.
        batch: (number of sequences, random numbers, whether for training) to the model's arguments, with `labels`.
        steps: the budget of a run.
        batch_size: in sequences.
        learning_rate: a sound one, of AdamW.
    """

    name: str
    architectures: Mapping[str, Callable[[], nn.Module]]
    batch: Callable[[int, Generator, bool], Batch]
    steps: int
    batch_size: int
    learning_rate: float


# Associative recall: tokens that each are a key and a value, then keys whose values are to be said. Padded on the left,
# as the number of pairs differs.

_PAIRS, _ASKED, _SYMBOLS = 8, 6, 12


def recall_batch(size: int, generator: Generator, training: bool) -> Batch:
    keys = torch.rand(size, _SYMBOLS, generator=generator).argsort(1)[:, :_PAIRS]
    values = torch.randint(_SYMBOLS, (size, _PAIRS), generator=generator)
    first = torch.randint(_PAIRS // 2, (size, 1), generator=generator)  # pairs before are padding
    asked = first + (torch.rand(size, _ASKED, generator=generator) * (_PAIRS - first)).long()
    num_pairs = _SYMBOLS * _SYMBOLS
    end = torch.full((size, 1), num_pairs + _SYMBOLS)
    pairs = (keys * _SYMBOLS + values).where(torch.arange(_PAIRS) >= first, num_pairs + _SYMBOLS + 1)
    ids = torch.cat([pairs, num_pairs + keys.gather(1, asked), end], 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -_ASKED:] = values.gather(1, asked)  # of the token before, as in all language models
    return {"input_ids": ids, "attention_mask": (ids != num_pairs + _SYMBOLS + 1).long(), "labels": labels}


# Copying: random symbols, then the same ones again, which needs an induction head.

_COPIED, _ALPHABET = 20, 64


def copy_batch(size: int, generator: Generator, training: bool) -> Batch:
    part = torch.randint(_ALPHABET, (size, _COPIED), generator=generator)
    ids = torch.cat([part, part], 1)
    labels = ids.clone()
    labels[:, : _COPIED + 1] = IGNORED
    return {"input_ids": ids, "labels": labels}


# The next byte of Python source.

_CONTEXT = 96


@cache
def _source() -> tuple[Tensor, Tensor]:
    """Return the bytes to train on and those to measure with."""
    return tuple(torch.from_numpy(np.frombuffer(text, dtype=np.uint8) & 127) for text in source_code())


def bytes_batch(size: int, generator: Generator, training: bool) -> Batch:
    text = _source()[0 if training else 1]
    starts = torch.randint(len(text) - _CONTEXT, (size, 1), generator=generator)
    ids = text[starts + torch.arange(_CONTEXT)].long()
    return {"input_ids": ids, "labels": ids}


# Images: handwritten digits where there are some, else drawn shapes.


@dataclass(frozen=True)
class Images:
    pixels: Tensor  # [images, 1, 28, 28], 0 to 1
    labels: Tensor

    def batch(self, size: int, generator: Generator) -> Batch:
        chosen = torch.randint(len(self.labels), (size,), generator=generator)
        return {"pixel_values": self.pixels[chosen], "labels": self.labels[chosen]}


def mnist(path: Path) -> tuple[Images, Images]:
    with np.load(path) as file:
        return tuple(
            Images(
                torch.from_numpy(file[f"{part}_images"]).reshape(-1, 1, 28, 28).float() / 255,
                torch.from_numpy(file[f"{part}_labels"]).long(),
            )
            for part in ("train", "test")
        )


def shapes(number: int, seed: int) -> Images:
    """Return discs, squares, rings, crosses and stripes in noise; ten classes, each shape light or dark."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (number,), generator=generator)
    centre = 9 + 10 * torch.rand(2, number, 1, 1, generator=generator)
    radius = 4 + 4 * torch.rand(number, 1, 1, generator=generator)
    axis = torch.arange(28.0)
    y, x = axis[None, :, None] - centre[0], axis[None, None] - centre[1]
    round_distance, square_distance = (x.square() + y.square()).sqrt(), torch.maximum(x.abs(), y.abs())
    inside = square_distance < radius
    drawn = torch.stack(
        [
            round_distance < radius,
            inside,
            (round_distance < radius) & (round_distance > 0.6 * radius),
            inside & ((x.abs() < 1.5) | (y.abs() < 1.5)),
            inside & (y.remainder(4) < 2),
        ]
    )
    shape = drawn[labels % 5, torch.arange(number)].float() * (labels // 5 * 2 - 1)[:, None, None]
    noise = 0.5 * torch.randn(number, 28, 28, generator=generator)
    return Images((shape + noise)[:, None] / 2 + 0.5, labels)


# Sentences: their sentiment where there are some, else whether a line of source is prose or code.


def code_or_prose() -> list[tuple[str, int]]:
    """Return lines of the standard library: comments (0) and code (1), without the characters that tell them apart."""
    rows = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for line in file.read_text(encoding="utf-8", errors="ignore").splitlines():
            words = line.strip(" #\t:()=")
            if len(words) > 20:
                rows.append((words, int(not line.lstrip().startswith("#"))))
    comments = [row for row in rows if row[1] == 0]
    code = [row for row in rows if row[1] == 1]
    chosen = np.random.default_rng(0).permutation(len(code))[: len(comments)]
    mixed = comments + [code[index] for index in chosen]
    return [mixed[index] for index in np.random.default_rng(1).permutation(len(mixed))]


@cache
def tasks(data: Path | None) -> dict[str, Task]:
    """Return all tasks, by name.

    Args:
        data: directory with image/mnist.npz and text/sst2_train.tsv, sst2_dev.tsv; without, images and sentences are
            made.
    """
    return {task.name: task for task in (_recall(), _copy(), _bytes(), _images(data), _text(data))}


def _recall() -> Task:
    vocabulary = _SYMBOLS * _SYMBOLS + _SYMBOLS + 2
    models = {
        "llama": partial(arch.llama, vocabulary),
        "gpt2": partial(arch.gpt2, vocabulary),
        "qwen3": partial(arch.qwen3, vocabulary),
    }
    return Task("recall", models, recall_batch, steps=1000, batch_size=32, learning_rate=1.5e-3)


def _copy() -> Task:
    models = {
        "llama": partial(arch.llama, _ALPHABET, key_heads=4),
        "gpt2": partial(arch.gpt2, _ALPHABET, layers=3),
        "opt": partial(arch.opt, _ALPHABET),
    }
    return Task("copy", models, copy_batch, steps=800, batch_size=16, learning_rate=1e-3)


def _bytes() -> Task:
    models = {
        "llama": partial(arch.llama, 128, width=96, layers=3),
        "gpt2": partial(arch.gpt2, 128, width=96, layers=3),
        "opt": partial(arch.opt, 128, width=96, layers=3),
    }
    return Task("bytes", models, bytes_batch, steps=500, batch_size=16, learning_rate=2e-3)


def _images(data: Path | None) -> Task:
    models = {"vit": partial(arch.vit, 10), "wide vit": partial(arch.vit, 10, width=128, layers=2)}

    @cache
    def parts() -> tuple[Images, Images]:
        return mnist(data / "image/mnist.npz") if data else (shapes(20_000, 0), shapes(2_000, 1))

    def batch(size: int, generator: Generator, training: bool) -> Batch:
        return parts()[0 if training else 1].batch(size, generator)

    return Task("images", models, batch, steps=500, batch_size=32, learning_rate=5e-4)


def _text(data: Path | None) -> Task:
    models = {"minilm": partial(arch.minilm, 2, layers=3), "short minilm": partial(arch.minilm, 2, layers=2)}

    @cache
    def parts() -> tuple[Sentences, Sentences]:
        if data:
            names = (("sst2_train.tsv", 20_000), ("sst2_dev.tsv", 2_000))
            rows_of_parts = tuple(read_tsv(data / "text" / name, most=number) for name, number in names)
        else:
            rows = code_or_prose()
            rows_of_parts = rows[2_000:22_000], rows[:2_000]
        return tuple(Sentences.tokenize(rows, max_tokens=24) for rows in rows_of_parts)

    def batch(size: int, generator: Generator, training: bool) -> Batch:
        sentences = parts()[0 if training else 1]
        return sentences.batch(torch.randint(len(sentences.labels), (size,), generator=generator).tolist())

    return Task("text", models, batch, steps=150, batch_size=16, learning_rate=1.5e-4)
