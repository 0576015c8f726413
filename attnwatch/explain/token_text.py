"""Text of tokens, for any transformers tokenizer."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from attnwatch.errors import ConfigurationError

Decode = Callable[[tuple[int, ...]], str]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_MOST_BYTES = 4  # of a character in UTF-8


def require_tokenizer(tokenizer: object, *, optional: bool = False) -> None:
    """Raise a `ConfigurationError` unless `tokenizer` is a transformers tokenizer (or None, if `optional`)."""
    if (optional and tokenizer is None) or hasattr(tokenizer, "all_special_ids"):
        return
    got = f"the text {tokenizer!r}" if isinstance(tokenizer, str) else f"a {type(tokenizer).__name__}"
    name = repr(tokenizer) if isinstance(tokenizer, str) else "name"
    raise ConfigurationError(
        f"`tokenizer` must be a tokenizer of transformers, got {got}: pass a tokenizer object, "
        f"AutoTokenizer.from_pretrained({name})."
    )


@dataclass(frozen=True)
class DecodedTokens:
    """Text of consecutive tokens that include no special token.

    Attributes:
        texts: part of the text that each token adds. A character whose bytes are in several tokens belongs to the last
            of them; the others add "".
    """

    texts: list[str]

    @cached_property
    def text(self) -> str:
        """Concatenation of `texts`."""
        return "".join(self.texts)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Start and end position of each token in `text`."""
        ends = list(itertools.accumulate(map(len, self.texts), initial=0))
        return list(itertools.pairwise(ends))

    @cached_property
    def positions(self) -> list[int | None]:
        """Position in `text` of each token's first character, visible if possible; None for a token without text."""
        return [
            begin + (len(text) - len(text.lstrip())) % len(text) if text else None
            for text, (begin, _) in zip(self.texts, self.spans, strict=True)
        ]


def cached_decoder(tokenizer: Any) -> Decode:
    """Return a function that decodes ids and caches the result."""

    @cache
    def decode(ids: tuple[int, ...]) -> str:
        return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    return decode


def decode_tokens(ids: Sequence[int], decode: Decode) -> DecodedTokens:
    """Return the text that each token adds to the text before it.

    The text of a token depends on the preceding token (a space or none), so both are decoded together. This works for
    every tokenizer that can decode, and for ids that its own tokenization would not produce.

    >>> vocabulary = {1: "play", 2: "##ing", 3: "now"}
    >>> decode = lambda ids: " ".join(vocabulary[each] for each in ids).replace(" ##", "")
    >>> decode_tokens([1, 2, 3], decode).texts
    ['play', 'ing', ' now']
    """
    texts, begin, done = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, text = decode(tuple(ids[begin:done])) if done > begin else "", decode(tuple(ids[begin:end]))
        if text.endswith(_INCOMPLETE) and end - done < _MOST_BYTES:
            texts.append("")
            continue
        texts.append(text[len(before) :])
        begin, done = done, end
    return DecodedTokens(texts)


def displayed_tokens(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token, or the name of a special token, for display."""
    decode, special = cached_decoder(tokenizer), set(tokenizer.all_special_ids)
    texts: list[str] = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
        run = list(group)
        texts += map(str, tokenizer.convert_ids_to_tokens(run)) if is_special else decode_tokens(run, decode).texts
    return texts
