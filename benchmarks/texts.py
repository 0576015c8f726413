"""Texts that benchmarks train on: labelled sentences, and the source code of the standard library."""

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from benchmarks.common import minilm_directory


@dataclass(frozen=True)
class Sentences:
    """Token ids of sentences by all-MiniLM-L6-v2's tokenizer, and their labels."""

    tokens: list[list[int]]
    labels: list[int]

    @classmethod
    def tokenize(cls, rows: Sequence[tuple[str, int]], max_tokens: int) -> "Sentences":
        tokenizer = AutoTokenizer.from_pretrained(minilm_directory(), trust_remote_code=False)
        texts, labels = zip(*rows, strict=True)
        return cls(tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"], list(labels))

    def first(self, number: int) -> "Sentences":
        return Sentences(self.tokens[:number], self.labels[:number])

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the arguments of a classifier, padded on the right."""
        rows = [torch.tensor(self.tokens[index]) for index in indices]
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": torch.tensor([self.labels[index] for index in indices]),
        }


def read_tsv(*paths: Path, most: int | None = None) -> list[tuple[str, int]]:
    """Return sentences and labels of files: a header line, then sentence <tab> label; at most `most` of each file."""
    end = None if most is None else most + 1
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()[1:end]]
    return [(text, int(label)) for text, label in (line.rsplit("\t", 1) for line in lines)]


def source_code() -> tuple[bytes, bytes]:
    """Return the files of Python's standard library: those to train on, and every tenth, which is held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    training = [file for index, file in enumerate(files) if index % 10]
    return tuple(b"\n".join(file.read_bytes() for file in part) for part in (training, files[::10]))
