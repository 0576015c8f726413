"""Wording of the questions for a model, and parsing of a percentage in its reply."""

import math
import re
import string
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError
from attnwatch.utils.arguments import require_text

# A number with everything attached to it: signs, digits, separators, letters; not inside a word: "GPT4 says 80%" is 80.
_NUMBER = re.compile(r"(?<![\w.,])[-−+]?[0-9][0-9.,]*\w*")
_PLAIN_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")
_FOLLOW_UP_FIELDS = ("prompt", "answer", "reply")


@dataclass(frozen=True)
class Templates:
    """Templates that end with the part that the model adds, a choice or a reply. Spaces before it belong to it.

    Attributes:
        answer: question with `{prompt}` that ends with `{choice}`.
        yes_no: question whether `{answer}` is right, with `{prompt}` and `{answer}`, that ends with `{reply}`.
        percentage: question about the confidence in percent, with the fields of `yes_no`.
        reason: question about the reason, with the fields of `yes_no`.
        yes, no: words for yes and no, whose probabilities are summed.

    Raises:
        ConfigurationError: a template lacks a field, has an unknown one, or does not end with its last field.

    Example:
        >>> Templates(answer="Question: {prompt}\\nAnswer: {choice}").question("Is the sky blue?")
        ('Question: Is the sky blue?\\nAnswer:', ' ')
    """

    answer: str = "{prompt} {choice}"
    yes_no: str = "{prompt} {answer}\nIs this right, yes or no? Answer: {reply}"
    percentage: str = "{prompt} {answer}\nHow likely is it that this is right, from 0% to 100%? Answer: {reply}"
    reason: str = "{prompt} {answer}\nWhy is this right? Because {reply}"
    yes: tuple[str, ...] = ("yes", "Yes")
    no: tuple[str, ...] = ("no", "No")

    def __post_init__(self) -> None:
        for name in ("answer", "yes_no", "percentage", "reason"):
            _check(name, getattr(self, name), ("prompt", "choice") if name == "answer" else _FOLLOW_UP_FIELDS)
        for name in ("yes", "no"):
            words = getattr(self, name)
            if isinstance(words, str) or not words:
                raise ConfigurationError(f"`{name}` must be a nonempty tuple of words; got {words!r}.")
            for word in words:
                require_text(name, word, expected="a tuple of words")
            object.__setattr__(self, name, tuple(words))
        if len({*self.yes, *self.no}) < len(self.yes) + len(self.no):
            raise ConfigurationError(f"`yes` and `no` must be different words, got {self.yes!r} and {self.no!r}.")

    def question(self, prompt: str) -> tuple[str, str]:
        """Return the text before a choice, and the space between the two."""
        return _without_blanks(self.answer.removesuffix("{choice}").format(prompt=prompt))

    def follow_up(self, name: str, prompt: str, answer: str) -> tuple[str, str]:
        """Return the text before the reply in the template with this name, and the space between the two."""
        template = getattr(self, name).removesuffix("{reply}")
        return _without_blanks(template.format(prompt=prompt.rstrip(" "), answer=answer.strip(" ")))


def parse_percentage(text: str) -> float:
    """Return the first number in a reply, read as a percentage.

    Args:
        text: reply of a model.

    Returns:
        Value from 0 to 1; nan unless the number is plain and between 0 and 100, with or without %. A number with a
        sign, a thousands separator, a decimal comma or letters is not plain.

    >>> parse_percentage("About 85%, I think, or 90."), parse_percentage("150"), parse_percentage("very sure")
    (0.85, nan, nan)
    """
    found = _NUMBER.search(text)
    number = found[0].rstrip(".,") if found else ""
    if not _PLAIN_NUMBER.fullmatch(number) or float(number) > 100:
        return math.nan
    return float(number) / 100


def _without_blanks(text: str) -> tuple[str, str]:
    return text.rstrip(" "), " " if text.endswith(" ") else ""


def _check(name: str, template: str, fields: tuple[str, ...]) -> None:
    expected = ", ".join(f"{{{each}}}" for each in fields)
    try:
        found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"`{name}` must be a text with {expected} in it, got {template!r}: {error}."
        ) from error
    require_text(name, template)
    if sorted(found) != sorted(fields) or not template.endswith(f"{{{fields[-1]}}}"):
        raise ConfigurationError(
            f"`{name}` must have {expected}, each once, and end with the last; got {template!r}. Write other braces "
            "as {{ and }}."
        )
