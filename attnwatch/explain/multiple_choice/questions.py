"""Multiple-choice questions from a list or a file."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnwatch.errors import ConfigurationError
from attnwatch.utils.arguments import require_text, require_unicode
from attnwatch.utils.files import UnreadableFileError, parse_json, read_text

_EXPECTED = '{"prompt": str, "choices": [str, str, ...], "answer": index or text of a choice}'
_MOST_CHARACTERS = 2**20  # of a line


@dataclass(frozen=True)
class Question:
    """Question with choices, one of which is right.

    Attributes:
        prompt: text before the answer.
        choices: two or more different texts.
        answer: index of the right choice, or its text, which is converted to the index.

    Raises:
        ConfigurationError: a choice is empty or repeated, there are fewer than two, or `answer` is not one of them.

    >>> Question("The sky is", ("blue", "green"), answer="green")
    Question(prompt='The sky is', choices=('blue', 'green'), answer=1)
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int | str

    def __post_init__(self) -> None:
        require_text("prompt", self.prompt)
        if isinstance(self.choices, str) or not isinstance(self.choices, Sequence) or len(self.choices) < 2:
            raise ConfigurationError(f"`choices` must be a list of at least two texts, got {self.choices!r}.")
        if not all(isinstance(choice, str) and choice.strip() for choice in self.choices):
            raise ConfigurationError(f"`choices` must be nonempty texts, got {list(self.choices)!r}.")
        if len({choice.strip() for choice in self.choices}) < len(self.choices):
            raise ConfigurationError(f"`choices` must differ from each other, got {list(self.choices)!r}.")
        for choice in self.choices:
            require_unicode("choices", choice)
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
    """Return the questions of a JSONL file.

    Args:
        path: path of a UTF-8 file. Each line is an object with "prompt", "choices" and "answer"; blank lines are
            skipped.

    Raises:
        ConfigurationError: the file can't be read, has no question, or has an invalid line, which the message names.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write('{"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}')
        ...     file.flush()
        ...     load_questions(file.name)
        [Question(prompt='2 + 2 =', choices=('3', '4'), answer=1)]
    """
    try:
        lines = read_text(path).split("\n")
    except UnreadableFileError as error:
        raise ConfigurationError(f"`questions`: {path} {error}; expected on each line {_EXPECTED}.") from error
    found = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigurationError(f"`questions`: {path} is empty; expected on each line {_EXPECTED}.")
    return found


def as_questions(given: str | os.PathLike[str] | Iterable[Question | Mapping[str, Any]]) -> list[Question]:
    """Return the questions of a file, or of a list of questions or of mappings like the lines of a file."""
    if isinstance(given, str | os.PathLike):
        return load_questions(given)
    if isinstance(given, Question | Mapping) or not isinstance(given, Iterable):
        raise ConfigurationError(f"`questions` must be the path of a JSONL file or a list of questions, got {given!r}.")
    found = [
        each if isinstance(each, Question) else _question(each, f"question {number}")
        for number, each in enumerate(given, 1)
    ]
    if not found:
        raise ConfigurationError("`questions` is empty: pass at least one, or None to generate some from a text.")
    return found


def _parse(line: str, where: str) -> Question:
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
