"""Targets of the probes: labels of tokens derived from ids, positions and text."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnwatch.explain.batches import Batch, labels_of, token_mask
from attnwatch.explain.probing.python_code import CodeMarks, mark_code
from attnwatch.explain.token_text import DecodedTokens, cached_decoder, decode_tokens

IGNORED = -1

MOST_DEPTH = 3
"""Largest nesting depth; deeper brackets count as this one."""

# Start of a token whose first letter, digit or underscore starts a word.
_WORD_START = re.compile(r"\W*\b\w")

OwnLabels = Callable[[Batch], Tensor] | Sequence[Tensor]
"""User labels: a function of a batch, or a list with one tensor per batch, int [batch, tokens] or [batch], negative if
there is no label."""


def _character_class(text: str) -> str:
    core = text.strip()
    if not core:
        return "space"
    if core.isalpha():
        return "letters"
    if core.isdigit():
        return "digits"
    return "mixed" if any(map(str.isalnum, core)) else "punctuation"


def _case(text: str) -> str | None:
    letters = "".join(filter(str.isalpha, text))
    if letters.lower() == letters.upper():
        return None  # no letters, or a script without case
    if letters.islower():
        return "lower"
    if letters[0].isupper() and (letters[1:].islower() or len(letters) == 1):
        return "capitalized"
    return "upper" if letters.isupper() else "mixed"


def _by_text(classify: Callable[[str], str | None], classes: Sequence[str]) -> Callable[[DecodedTokens], list[int]]:
    numbers: dict[str | None, int] = {None: IGNORED, **{name: number for number, name in enumerate(classes)}}
    return lambda tokens: [numbers[classify(text)] for text in tokens.texts]


def _word_starts(tokens: DecodedTokens) -> list[int]:
    """Return 1 for tokens with the first letter, digit or underscore of a word, otherwise 0."""
    return [int(bool(_WORD_START.match(tokens.text, *span))) for span in tokens.spans]


def _code(marks_of: Callable[[CodeMarks], Sequence[int]]) -> Callable[[DecodedTokens], list[int]]:
    def label(tokens: DecodedTokens) -> list[int]:
        marks = marks_of(mark_code(tokens.text))
        return [IGNORED if position is None else int(marks[position]) for position in tokens.positions]

    return label


_FROM_TEXT: dict[str, Callable[[DecodedTokens], list[int]]] = {
    "character_class": _by_text(_character_class, ("letters", "digits", "punctuation", "space", "mixed")),
    "case": _by_text(_case, ("lower", "upper", "capitalized", "mixed")),
    "word_start": _word_starts,
    "in_string": _code(lambda marks: marks.in_string),
    "in_comment": _code(lambda marks: marks.in_comment),
    "keyword": _code(lambda marks: marks.keyword),
    "nesting_depth": _code(lambda marks: [min(depth, MOST_DEPTH) for depth in marks.depth]),
}
# From the ids [batch, tokens], IGNORED at padding and special tokens.
_FROM_IDS: dict[str, Callable[[Tensor], Tensor]] = {
    "token": lambda ids: ids,
    "previous_token": lambda ids: pad(ids[:, :-1], (1, 0), value=IGNORED),
    "next_token": lambda ids: pad(ids[:, 1:], (0, 1), value=IGNORED),
}

LABEL, LABEL_AT_FIRST, POSITION = "label", "label_at_first", "position"
TEXT_TARGETS = tuple(_FROM_TEXT)
TOKEN_TARGETS = (*_FROM_IDS, POSITION, *TEXT_TARGETS)
BUILT_IN = (LABEL, LABEL_AT_FIRST, *TOKEN_TARGETS)
DEFAULTS = (*_FROM_IDS, POSITION)
DEFAULTS_WITH_TOKENIZER = ("character_class", "word_start")


def token_labels(batch: Batch, targets: Sequence[str], tokenizer: Any | None = None) -> dict[str, Tensor]:
    """Return the labels of the built-in targets among these, int64 [batch, tokens].

    They are IGNORED at padding and, with a tokenizer, at special tokens.
    """
    mask, ids = token_mask(batch).cpu(), batch["input_ids"].cpu()
    special = [] if tokenizer is None else tokenizer.all_special_ids
    content = mask & ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype))
    known = ids.where(content, IGNORED)
    labels = {name: label(known) for name, label in _FROM_IDS.items() if name in targets}
    if POSITION in targets:
        labels[POSITION] = mask.long().cumsum(1) - 1
    from_text = [name for name in TEXT_TARGETS if name in targets]
    if from_text:
        labels |= _text_labels(ids, content, from_text, tokenizer)
    return {name: each.where(content, IGNORED) for name, each in labels.items()}


def _text_labels(ids: Tensor, content: Tensor, targets: list[str], tokenizer: Any) -> dict[str, Tensor]:
    """Return the labels of the tokens between special tokens, [batch, tokens]."""
    labels = {name: torch.full_like(ids, IGNORED) for name in targets}
    decode = cached_decoder(tokenizer)
    for row, (row_ids, row_content) in enumerate(zip(ids.tolist(), content.tolist(), strict=True)):
        for is_content, run in itertools.groupby(range(len(row_ids)), key=row_content.__getitem__):
            if not is_content:
                continue
            columns = list(run)
            tokens = decode_tokens([row_ids[column] for column in columns], decode)
            for name in targets:
                found = zip(_FROM_TEXT[name](tokens), tokens.texts, strict=True)
                labels[name][row, columns] = torch.tensor([label if text else IGNORED for label, text in found])
    return labels


def predicts_tokens(batch: Batch) -> bool:
    """Return whether the labels of a batch are its tokens, as for a language model."""
    labels, ids = labels_of(batch), batch["input_ids"]
    if not isinstance(labels, Tensor) or labels.shape != ids.shape or labels.is_floating_point():
        return False
    given = labels >= 0
    return bool(given.any()) and torch.equal(labels[given].to(ids), ids[given])
