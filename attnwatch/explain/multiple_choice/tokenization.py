"""Tokens of a question with its choices, for any transformers tokenizer."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from attnwatch.errors import ConfigurationError
from attnwatch.explain.multiple_choice.options import EvaluationOptions
from attnwatch.explain.multiple_choice.questions import Question
from attnwatch.explain.token_text import require_tokenizer


class SkippedQuestion(Exception):
    """Error for a question that can't be asked, with the reason as its message."""


class Continuation(NamedTuple):
    """Tokens of a context and a text after it, which begins at `start`."""

    ids: tuple[int, ...]
    start: int


class QuestionTokenizer:
    """Tokenizer with or without special tokens for padding and the start and end of a text.

    Args:
        tokenizer: transformers tokenizer.
        vocabulary_size: number of ids of the model; None if unknown.

    Attributes:
        pad_id: id for padding, which is masked; any id if the tokenizer has none.
        end_id: id of the end of a text, or None.
        special_ids: ids of all special tokens.

    Raises:
        ConfigurationError: `tokenizer` is not a tokenizer.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int | None = None):
        require_tokenizer(tokenizer)
        self._tokenizer, self._vocabulary_size = tokenizer, vocabulary_size
        self.end_id: int | None = tokenizer.eos_token_id
        self._begin_id: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end_id
        self.pad_id: int = next((each for each in (tokenizer.pad_token_id, self.end_id) if each is not None), 0)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._prefix = self._prefix_ids()

    def plain_ids(self, text: str) -> list[int]:
        """Return the ids of a text without the special tokens that the tokenizer adds."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text with the special tokens before it, but not those after it.

        Raises:
            ConfigurationError: the model does not have one of the ids.
        """
        ids = (*self._prefix, *self.plain_ids(text))
        if self._vocabulary_size is not None and max(ids, default=0) >= self._vocabulary_size:
            raise ConfigurationError(
                f"`tokenizer` does not belong to the model: it produces the token id {max(ids)}, but the model has "
                f"{self._vocabulary_size} ids."
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def continuations(self, context: str, texts: Sequence[str]) -> list[Continuation]:
        """Return the context followed by each text.

        A tokenizer may merge the start of a text with the end of the context. Therefore, all texts start at the first
        token at which one of them differs from the context alone.

        Raises:
            SkippedQuestion: a text has no token of its own, or no token precedes the texts.
        """
        rows = [self.ids(context + text) for text in texts]
        shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(self.ids(context), *rows, strict=False))
        start = len(list(shared))
        if min(map(len, rows)) <= start:
            raise SkippedQuestion("a choice or a reply has no token of its own")
        if start > 0:
            return [Continuation(ids, start) for ids in rows]
        if self._begin_id is None:
            raise SkippedQuestion("no token precedes the choices, and the tokenizer has no bos token")
        return [Continuation((self._begin_id, *ids), 1) for ids in rows]

    def _prefix_ids(self) -> list[int]:
        plain, whole = self.plain_ids("a"), list(self._tokenizer("a")["input_ids"])
        starts = [at for at in range(len(whole)) if whole[at : at + len(plain)] == plain]
        return whole[: starts[0]] if starts else []


class Replies(NamedTuple):
    """Replies that mean yes and replies that mean no, without duplicates and ambiguous ones."""

    yes: list[Continuation]
    no: list[Continuation]

    @property
    def all(self) -> list[Continuation]:
        return [*self.yes, *self.no]


@dataclass(frozen=True)
class TokenizedQuestion:
    """Tokenized question. The last three attributes hold a follow-up question for each choice, if asked."""

    question: Question
    choices: list[Continuation]
    yes_no: list[Replies]
    prompts: dict[str, list[tuple[int, ...]]]


def tokenize_question(
    question: Question, tokenizer: QuestionTokenizer, options: EvaluationOptions, max_length: float
) -> TokenizedQuestion:
    """Return a tokenized question.

    Raises:
        SkippedQuestion: the question can't be asked.
    """
    templates = options.templates

    def behind(parts: tuple[str, str], texts: Sequence[str]) -> list[Continuation]:
        context, blanks = parts
        return tokenizer.continuations(context, [text if text[0].isspace() else blanks + text for text in texts])

    def replies(parts: tuple[str, str]) -> Replies:
        found = behind(parts, (*templates.yes, *templates.no))  # the same if case is ignored or words are unknown
        yes, no = found[: len(templates.yes)], found[len(templates.yes) :]
        both = set(yes) & set(no)
        yes, no = ([each for each in dict.fromkeys(group) if each not in both] for group in (yes, no))
        if not yes or not no:
            raise SkippedQuestion("the words for yes and no are the same tokens")
        return Replies(yes, no)

    def follow_ups(name: str) -> list[tuple[str, str]]:
        return [templates.follow_up(name, question.prompt, choice) for choice in question.choices]

    choices = behind(templates.question(question.prompt), question.choices)
    if len(set(choices)) < len(choices):
        raise SkippedQuestion("two choices are the same tokens")
    yes_no = list(map(replies, follow_ups("yes_no"))) if options.stated == "yes_no" else []
    prompts = {name: [tokenizer.ids(text) for text, _ in follow_ups(name)] for name in options.new_tokens}
    lengths = [len(each.ids) - 1 for each in (*choices, *(each for both in yes_no for each in both.all))]
    lengths += [len(ids) + number for name, number in options.new_tokens.items() for ids in prompts[name]]
    if max(lengths) > max_length:
        raise SkippedQuestion(
            f"it takes {max(lengths)} tokens, more than the {max_length:.0f} that can be read at once"
        )
    return TokenizedQuestion(question, choices, yes_no, prompts)
