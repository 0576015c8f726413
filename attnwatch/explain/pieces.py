"""The text that tokens stand for."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Decode = Callable[[tuple[int, ...]], str]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Segment:
    """Tokens in a row without a special one among them.

    Attributes:
        pieces: of the text, one for each token; "" where a token has only the first bytes of a character, which then
            belongs to the token with the last.
    """

    pieces: list[str]

    @cached_property
    def text(self) -> str:
        return "".join(self.pieces)

    @cached_property
    def places(self) -> list[int | None]:
        """Where in the text the first visible character of each token is, or the first of all if none is visible."""
        places, begin = [], 0
        for piece in self.pieces:
            spaces = len(piece) - len(piece.lstrip())
            places.append(begin + spaces % len(piece) if piece else None)
            begin += len(piece)
        return places


def decoder(tokenizer: Any) -> Decode:
    """Of a transformers tokenizer, with what it has decoded kept."""
    known: dict[tuple[int, ...], str] = {}

    def decode(ids: tuple[int, ...]) -> str:
        if ids not in known:
            known[ids] = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return known[ids]

    return decode


def segment(ids: Sequence[int], decode: Decode) -> Segment:
    """What each token adds to the text of those before it.

    A token's text depends on the one before (a space, or none), so they are decoded together and the difference is
    taken. Works for every tokenizer that decodes, and for ids that its own tokenization would not give.

    >>> vocabulary = {1: "play", 2: "##ing", 3: "now"}
    >>> segment([1, 2, 3], lambda ids: " ".join(vocabulary[each] for each in ids).replace(" ##", "")).pieces
    ['play', 'ing', ' now']
    """
    pieces, begin, read = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, text = decode(tuple(ids[begin:read])) if read > begin else "", decode(tuple(ids[begin:end]))
        if text.endswith(_INCOMPLETE) and end - read < 4:  # a character has at most four bytes
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        begin, read = read, end
    return Segment(pieces)


def token_pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token, for people: a special one by its name."""
    decode, special = decoder(tokenizer), set(tokenizer.all_special_ids)
    pieces: list[str] = []
    for is_special, run in itertools.groupby(ids, special.__contains__):
        run = list(run)
        pieces += map(str, tokenizer.convert_ids_to_tokens(run)) if is_special else segment(run, decode).pieces
    return pieces
