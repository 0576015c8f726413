"""In which words a model is asked, and how its answer in words is read."""

import math
import re
import string
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError
from attnwatch.explain.asking.encoding import require_unicode

# A number with whatever is written to it: signs, digits, separators, letters. Not within a word: "GPT4 says 80%" is 80.
_NUMBER = re.compile(r"(?<![\w.,])[-−+]?[0-9][0-9.,]*\w*")
_PLAIN_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")


@dataclass(frozen=True)
class Templates:
    """Each ends with what the model adds: a choice, or its reply. Blanks before it belong to what is added.

    Attributes:
        answer: has `{prompt}`, ends with `{choice}`.
        yes_no: asks whether `{answer}` is right; has `{prompt}` and `{answer}`, ends with `{reply}`.
        percentage: asks how sure that is; alike.
        reason: asks why; alike.
        yes, no: words for both, of which the probabilities are added up.

    Raises:
        ConfigurationError: a template lacks a field, has another one, or does not end with its last.
    """

    answer: str = "{prompt} {choice}"
    yes_no: str = "{prompt} {answer}\nIs this right, yes or no? Answer: {reply}"
    percentage: str = "{prompt} {answer}\nHow likely is it that this is right, from 0% to 100%? Answer: {reply}"
    reason: str = "{prompt} {answer}\nWhy is this right? Because {reply}"
    yes: tuple[str, ...] = ("yes", "Yes")
    no: tuple[str, ...] = ("no", "No")

    def __post_init__(self):
        for name in ("answer", "yes_no", "percentage", "reason"):
            _check(name, getattr(self, name), ("prompt", "choice") if name == "answer" else _FOLLOW_UP)
        for name in ("yes", "no"):
            words = getattr(self, name)
            if isinstance(words, str) or not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise ConfigurationError(f"`{name}` must be a tuple of words, at least one; got {words!r}.")
            for word in words:
                require_unicode(name, word)
            object.__setattr__(self, name, tuple(words))
        if len({*self.yes, *self.no}) < len(self.yes) + len(self.no):
            raise ConfigurationError(f"`yes` and `no` must be different words, got {self.yes!r} and {self.no!r}.")

    def question(self, prompt: str) -> tuple[str, str]:
        """What comes before a choice, and the blanks between the two."""
        return _parted(self.answer.removesuffix("{choice}").format(prompt=prompt))

    def follow_up(self, name: str, prompt: str, answer: str) -> tuple[str, str]:
        """What comes before the reply in the template of this name, and the blanks between the two."""
        template = getattr(self, name).removesuffix("{reply}")
        return _parted(template.format(prompt=prompt.rstrip(" "), answer=answer.strip(" ")))


def as_templates(given: Templates | None) -> Templates:
    """Those that were given, or the usual ones.

    Raises:
        ConfigurationError: it is something else.
    """
    if given is None:
        return Templates()
    if not isinstance(given, Templates):
        raise ConfigurationError(
            f"`templates` must be `attnwatch.explain.Templates` or None, got a {type(given).__name__}: give "
            "Templates(answer=…)."
        )
    return given


_FOLLOW_UP = ("prompt", "answer", "reply")


def parse_percentage(text: str) -> float:
    """Read the first number in a reply as a percentage.

    Args:
        text: of the reply.

    Returns:
        0 to 1; nan unless it is a plain number from 0 to 100, with or without %. Signs, thousands, decimal commas, and
        letters at the number make it no plain one.

    >>> parse_percentage("About 85%, I think, or 90."), parse_percentage("150"), parse_percentage("very sure")
    (0.85, nan, nan)
    """
    found = _NUMBER.search(text)
    number = found[0].rstrip(".,") if found else ""
    if not _PLAIN_NUMBER.fullmatch(number) or float(number) > 100:
        return math.nan
    return float(number) / 100


def _parted(text: str) -> tuple[str, str]:
    return text.rstrip(" "), " " if text.endswith(" ") else ""


def _check(name: str, template: str, names: tuple[str, ...]) -> None:
    expected = ", ".join(f"{{{each}}}" for each in names)
    try:
        found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"`{name}` must be a text with {expected} in it, got {template!r}: {error}."
        ) from error
    require_unicode(name, template)
    if sorted(found) != sorted(names) or not template.endswith(f"{{{names[-1]}}}"):
        raise ConfigurationError(
            f"`{name}` must have {expected}, each once, and end with the last; got {template!r}. Write other braces "
            "as {{ and }}."
        )
