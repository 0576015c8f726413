"""What probes are asked for: a label for each token, from its id, its place or its text."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnwatch.explain.pieces import Segment, decoder, segment
from attnwatch.explain.probing.python_text import Marks, scan
from attnwatch.explain.subject import Batch, labels_of, token_mask

IGNORED = -1

MOST_DEPTH = 3
"""Deeper brackets count as these."""

_CHARACTER_CLASSES = ("letters", "digits", "punctuation", "space", "mixed")
_CASES = ("lower", "upper", "capitalized", "mixed")


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
        return None  # no letters, or of a script without case
    if letters.islower():
        return "lower"
    if letters[0].isupper() and (letters[1:].islower() or len(letters) == 1):
        return "capitalized"
    return "upper" if letters.isupper() else "mixed"


def _character_classes(of: Segment) -> list[int]:
    return [_CHARACTER_CLASSES.index(_character_class(piece)) for piece in of.pieces]


def _cases(of: Segment) -> list[int]:
    return [IGNORED if (case := _case(piece)) is None else _CASES.index(case) for piece in of.pieces]


def _word_starts(of: Segment) -> list[int]:
    """1 where the first letter, digit or underscore of a token follows none."""
    starts, begin = [], 0
    for piece in of.pieces:
        first = next((begin + index for index, each in enumerate(piece) if _is_word(each)), None)
        starts.append(int(first is not None and not (first and _is_word(of.text[first - 1]))))
        begin += len(piece)
    return starts


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _code(mark: Callable[[Marks], Sequence[int]]) -> Callable[[Segment], list[int]]:
    def label(of: Segment) -> list[int]:
        marks = mark(scan(of.text))
        return [IGNORED if place is None else int(marks[place]) for place in of.places]

    return label


_OF_TEXT: dict[str, Callable[[Segment], list[int]]] = {
    "character_class": _character_classes,
    "case": _cases,
    "word_start": _word_starts,
    "in_string": _code(lambda marks: marks.in_string),
    "in_comment": _code(lambda marks: marks.in_comment),
    "keyword": _code(lambda marks: marks.keyword),
    "nesting_depth": _code(lambda marks: [min(depth, MOST_DEPTH) for depth in marks.depth]),
}


def _token(ids: Tensor, content: Tensor) -> Tensor:
    return ids


def _previous(ids: Tensor, content: Tensor) -> Tensor:
    before = _none_of(ids)
    before[:, 1:] = torch.where(content[:, :-1], ids[:, :-1], IGNORED)
    return before


def _next(ids: Tensor, content: Tensor) -> Tensor:
    behind = _none_of(ids)
    behind[:, :-1] = torch.where(content[:, 1:], ids[:, 1:], IGNORED)
    return behind


def _none_of(ids: Tensor) -> Tensor:
    return torch.full_like(ids, IGNORED)


_OF_IDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token": _token,
    "previous_token": _previous,
    "next_token": _next,
}

LABEL, LABEL_AT_FIRST, POSITION = "label", "label_at_first", "position"
TEXT_TARGETS = tuple(_OF_TEXT)
BUILT_IN = (LABEL, LABEL_AT_FIRST, *_OF_IDS, POSITION, *TEXT_TARGETS)
FOR_ALL = (*_OF_IDS, POSITION)
FOR_TEXT = ("character_class", "word_start")

OwnLabels = Callable[[Batch], Tensor] | Sequence[Tensor]
"""int [batch, tokens] or [batch], negative where there is none: of a batch, or of each batch."""


def labels_of_tokens(batch: Batch, targets: Sequence[str], tokenizer: Any | None = None) -> dict[str, Tensor]:
    """The built-in targets among these: int64 [batch, tokens], IGNORED at padding and, with a tokenizer, specials."""
    mask = token_mask(batch).cpu()
    ids = batch["input_ids"].cpu()
    content = mask & ~_is_special(ids, tokenizer)
    labels = {name: label(ids, content) for name, label in _OF_IDS.items() if name in targets}
    if POSITION in targets:
        labels[POSITION] = mask.long().cumsum(1) - 1
    of_text = [name for name in TEXT_TARGETS if name in targets]
    if of_text:
        labels |= _labels_of_text(ids, content, of_text, tokenizer)
    return {name: torch.where(content, each, IGNORED) for name, each in labels.items()}


def _labels_of_text(ids: Tensor, content: Tensor, targets: list[str], tokenizer: Any) -> dict[str, Tensor]:
    labels = {name: _none_of(ids) for name in targets}
    decode = decoder(tokenizer)
    for row, (row_ids, row_content) in enumerate(zip(ids.tolist(), content.tolist(), strict=True)):
        for is_content, columns in itertools.groupby(range(len(row_ids)), key=row_content.__getitem__):
            if not is_content:
                continue
            columns = list(columns)
            of = segment([row_ids[column] for column in columns], decode)
            for name in targets:
                found = zip(_OF_TEXT[name](of), of.pieces, strict=True)
                labels[name][row, columns] = torch.tensor([label if piece else IGNORED for label, piece in found])
    return labels


def _is_special(ids: Tensor, tokenizer: Any | None) -> Tensor:
    special = [] if tokenizer is None else tokenizer.all_special_ids
    return torch.isin(ids, torch.tensor(special, dtype=ids.dtype))


def is_language_model(batch: Batch) -> bool:
    """Its labels are the tokens themselves: it is to foretell the next one."""
    labels, ids = labels_of(batch), batch["input_ids"]
    if not isinstance(labels, Tensor) or labels.shape != ids.shape or labels.is_floating_point():
        return False
    given = labels >= 0
    return bool(given.any()) and torch.equal(labels[given].to(ids), ids[given])
