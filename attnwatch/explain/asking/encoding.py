"""Texts as a tokenizer of transformers makes them tokens, and where in them a choice begins."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from attnwatch.errors import ConfigurationError
from attnwatch.explain.checks import require_tokenizer


class Unaskable(Exception):
    """Why a question can't be asked."""


class Continuation(NamedTuple):
    """Tokens of a context with a text behind it; those from `start` on are the text's."""

    ids: tuple[int, ...]
    start: int


class Encoder:
    """A tokenizer, with or without tokens for padding and for the beginning and end of a text.

    Attributes:
        pad_id: whatever is there, if it has none: padding is masked.
        end_id: of the end of a text, or None.
        special_ids: all that are no text.

    Raises:
        ConfigurationError: it is no tokenizer.
    """

    def __init__(self, tokenizer: Any):
        require_tokenizer(tokenizer, optional=False)
        self._tokenizer = tokenizer
        self.end_id: int | None = tokenizer.eos_token_id
        self._begin_id: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end_id
        self.pad_id: int = next((each for each in (tokenizer.pad_token_id, self.end_id) if each is not None), 0)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._before = self._put_before()

    def plain_ids(self, text: str) -> list[int]:
        """Without what the tokenizer puts around a text."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def ids(self, text: str) -> tuple[int, ...]:
        """With what the tokenizer puts before a text, but not with what it puts behind it: the text goes on."""
        return (*self._before, *self.plain_ids(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def continuations(self, context: str, texts: Sequence[str]) -> list[Continuation]:
        """Each text behind the context.

        A tokenizer may merge the beginning of a text with the end of the context. All texts therefore begin where the
        first of them parts from the context's own tokens: what is compared has the same tokens before it.

        Raises:
            Unaskable: a text has no tokens of its own, or there is nothing before them.
        """
        alone, whole = self.ids(context), [self.ids(context + text) for text in texts]
        start = min(_shared(alone, ids) for ids in whole)
        if min(map(len, whole)) <= start:
            raise Unaskable("what may be answered has no token of its own")
        if start > 0:
            return [Continuation(ids, start) for ids in whole]
        if self._begin_id is None:
            raise Unaskable("the choices' first tokens have nothing before them, as the tokenizer has no bos token")
        return [Continuation((self._begin_id, *ids), 1) for ids in whole]

    def _put_before(self) -> list[int]:
        plain, whole = self.plain_ids("a"), list(self._tokenizer("a")["input_ids"])
        starts = [at for at in range(len(whole)) if whole[at : at + len(plain)] == plain]
        return whole[: starts[0]] if starts else []


def require_unicode(name: str, text: str) -> None:
    """Raises a `ConfigurationError` where half a character is in a text (JSON has escapes for it): no tokenizer can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"`{name}` must be text that UTF-8 can encode, and has the lone surrogate {text[error.start]!r} at "
            f"{error.start}: {text[max(0, error.start - 20) : error.start + 20]!r}; take it out."
        ) from error


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
