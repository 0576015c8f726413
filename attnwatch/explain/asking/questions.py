"""Multiple-choice questions: of a file, or made from a text."""

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnwatch.errors import ConfigurationError
from attnwatch.explain.asking.encoding import Encoder, Unaskable, require_unicode
from attnwatch.explain.subject import Batch, token_mask
from attnwatch.utils.arguments import require_int
from attnwatch.utils.files import UnreadableFileError, parse_json, read_text

_EXPECTED = '{"prompt": str, "choices": [str, str, ...], "answer": index or text of a choice}'
_MOST_CHARACTERS = 2**20  # of a line
_TRIES = 60  # at places of a text: for a question, and for each of these for its other choices


@dataclass(frozen=True)
class Question:
    """A question with choices, of which one is right.

    Attributes:
        prompt: text before the answer.
        choices: two or more texts that differ.
        answer: index of the right choice, or its text, which becomes the index.

    Raises:
        ConfigurationError: fewer than two choices, an empty one, two alike, or `answer` is none of them.

    >>> Question("The sky is", ("blue", "green"), answer=0).choices
    ('blue', 'green')
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int | str

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ConfigurationError(f"`prompt` must be a text, got {self.prompt!r}.")
        if isinstance(self.choices, str) or not isinstance(self.choices, Sequence) or len(self.choices) < 2:
            raise ConfigurationError(f"`choices` must be a list of at least two texts, got {self.choices!r}.")
        if not all(isinstance(choice, str) and choice.strip() for choice in self.choices):
            raise ConfigurationError(f"`choices` must be texts that are not empty, got {list(self.choices)!r}.")
        if len({choice.strip() for choice in self.choices}) < len(self.choices):
            raise ConfigurationError(f"`choices` must differ from each other, got {list(self.choices)!r}.")
        for name, texts in (("prompt", [self.prompt]), ("choices", self.choices)):
            for text in texts:
                require_unicode(name, text)
        object.__setattr__(self, "choices", tuple(self.choices))
        object.__setattr__(self, "answer", self._index(self.answer))

    def _index(self, answer: Any) -> int:
        if isinstance(answer, str) and answer in self.choices:
            return self.choices.index(answer)
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(self.choices):
            return answer
        raise ConfigurationError(
            f"`answer` must be an index from 0 to {len(self.choices) - 1}, or the text of a choice, got {answer!r}."
        )


def load_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Read the questions of a JSONL file.

    Args:
        path: of a file in UTF-8, on each line an object with "prompt", "choices" and "answer". Blank lines are skipped.

    Raises:
        ConfigurationError: the file can't be read or has no question, or a line is wrong; file and line are named.
    """
    try:
        lines = read_text(path).split("\n")
    except UnreadableFileError as error:
        raise ConfigurationError(f"`questions`: {path} {error}; expected on each line {_EXPECTED}.") from error
    found = [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigurationError(f"`questions`: {path} is empty; expected on each line {_EXPECTED}.")
    return found


def as_questions(given: str | os.PathLike[str] | Iterable[Question | Mapping[str, Any]]) -> list[Question]:
    """Of a path, or of a list of questions or of what would be on the lines of a file."""
    if isinstance(given, (str, os.PathLike)):
        return load_questions(given)
    if isinstance(given, (Question, Mapping)) or not isinstance(given, Iterable):
        raise ConfigurationError(f"`questions` must be the path of a JSONL file or a list of questions, got {given!r}.")
    found = [
        each if isinstance(each, Question) else _question(each, f"question {number}")
        for number, each in enumerate(given, 1)
    ]
    if not found:
        raise ConfigurationError("`questions` is empty: give at least one, or None to make some from a text.")
    return found


def questions_from_text(
    text: str | Iterable[Batch],
    tokenizer: Any,
    number: int = 32,
    *,
    seed: int = 0,
    prompt_tokens: int = 32,
    choice_tokens: int = 3,
    num_choices: int = 4,
) -> list[Question]:
    """How does it go on? The prompt is a stretch of the text, one choice what follows, the others come from elsewhere.

    All choices begin with a word and have the same number of tokens.

    Args:
        text: a text, or batches with `input_ids` [batch, tokens], and `attention_mask` where there is padding.
        tokenizer: of transformers; it must be the one that made the batches.
        number: of questions; fewer come where the text has no more.
        seed: of the places and of the order of the choices.
        prompt_tokens, choice_tokens: how long.
        num_choices: of each question.

    Raises:
        ConfigurationError: an argument is wrong, or the text is too short or too uniform for a single question.
    """
    require_int("number", number, minimum=1)
    require_int("prompt_tokens", prompt_tokens, minimum=1)
    require_int("choice_tokens", choice_tokens, minimum=1)
    require_int("num_choices", num_choices, minimum=2)
    require_int("seed", seed, minimum=0)
    if isinstance(text, str):
        require_unicode("text", text)
    encoder = Encoder(tokenizer)
    sequences = [encoder.plain_ids(text)] if isinstance(text, str) else _sequences(text)
    maker = _Maker(encoder, sequences, prompt_tokens, choice_tokens, random.Random(seed))
    found = []
    for _ in range(number):
        question = maker.question(num_choices)
        if question is None:
            break
        if question not in found:
            found.append(question)
    if not found:
        name = "`text`" if isinstance(text, str) else "the text of the batches"
        raise ConfigurationError(
            f"{name} has no {num_choices} places with {prompt_tokens} + {choice_tokens} tokens of which the last begin "
            f"with a word ({sum(map(len, sequences))} tokens in {len(sequences)} sequences): give more of it, or "
            "`questions` of your own."
        )
    return found


class _Maker:
    """Of questions, from sequences of tokens."""

    def __init__(
        self, encoder: Encoder, sequences: list[list[int]], prompt_tokens: int, choice_tokens: int, draw: random.Random
    ):
        self._encoder, self._draw = encoder, draw
        self._prompt_tokens, self._choice_tokens = prompt_tokens, choice_tokens
        length = prompt_tokens + choice_tokens
        self._long = [ids for ids in sequences if len(ids) >= length]
        self._weights = [len(ids) - length + 1 for ids in self._long]  # each place as likely as the next

    def question(self, num_choices: int) -> Question | None:
        for _ in range(_TRIES if self._long else 0):
            prompt, true = self._place()
            if prompt.strip() and self._suits(prompt, true):
                others = self._others(prompt, true, num_choices - 1)
                if others is not None:
                    choices = [true, *others]
                    self._draw.shuffle(choices)
                    return Question(prompt, tuple(choices), choices.index(true))
        return None

    def _place(self) -> tuple[str, str]:
        """A stretch and what follows it, empty if that does not begin with a word."""
        (ids,) = self._draw.choices(self._long, self._weights)
        length = self._prompt_tokens + self._choice_tokens
        start = self._draw.randrange(len(ids) - length + 1)
        stretch = ids[start : start + length]
        if not self._encoder.special_ids.isdisjoint(stretch):  # where a document ends, or a word is unknown
            return "", ""
        prompt, whole = self._encoder.decode(stretch[: self._prompt_tokens]), self._encoder.decode(stretch)
        following = whole.removeprefix(prompt) if whole.startswith(prompt) else ""
        return prompt, following[1:] if following[:1] == " " and not following[1:2].isspace() else ""

    def _others(self, prompt: str, true: str, number: int) -> list[str] | None:
        found = {true.strip(): true}
        for _ in range(_TRIES):
            if len(found) == number + 1:
                return list(found.values())[1:]
            _, other = self._place()
            if other.strip() not in found and self._suits(prompt, other):
                found[other.strip()] = other
        return None

    def _suits(self, prompt: str, choice: str) -> bool:
        """Whether it has the right number of tokens behind the prompt."""
        if not choice.strip() or "\ufffd" in prompt + choice:
            return False
        try:
            ((ids, start),) = self._encoder.continuations(prompt, [f" {choice}"])
        except Unaskable:
            return False
        return len(ids) - start == self._choice_tokens


def _sequences(batches: Iterable[Batch]) -> list[list[int]]:
    found = []
    for batch in batches:
        mask = token_mask(batch)
        found += [row[kept].tolist() for row, kept in zip(batch["input_ids"], mask, strict=True)]
    return found


def _parsed(line: str, where: str) -> Question:
    if len(line) > _MOST_CHARACTERS:
        raise ConfigurationError(
            f"`questions`: {where} has {len(line):,} characters, more than any model reads; expected {_EXPECTED}."
        )
    try:
        fields = parse_json(line)
    except UnreadableFileError as error:
        raise ConfigurationError(f"`questions`: {where} {error}; expected {_EXPECTED}.") from error
    return _question(fields, where)


def _question(fields: Any, where: str) -> Question:
    if not isinstance(fields, Mapping):
        raise ConfigurationError(f"`questions`: {where} is a {type(fields).__name__}; expected {_EXPECTED}.")
    missing = [name for name in ("prompt", "choices", "answer") if name not in fields]
    if missing:
        raise ConfigurationError(f"`questions`: {where} has no {missing[0]!r}; expected {_EXPECTED}.")
    try:
        return Question(fields["prompt"], fields["choices"], fields["answer"])
    except ConfigurationError as error:
        raise ConfigurationError(f"`questions`: {where}: {error} Expected {_EXPECTED}.") from error
