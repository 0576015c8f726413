"""Signs in the course of a run, each in words with its numbers, that tell causes apart."""

from collections.abc import Mapping

from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.signs import (  # noqa: F401  (these register their signs)
    attention,
    both,
    keys,
    layers,
    logits,
    loss,
)
from attnwatch.diagnosis.signs.base import SIGNS

__all__ = ["SIGNS", "signs_of"]


def signs_of(run: RunCourse) -> Mapping[str, str]:
    """Return the signs that were seen in a run: the words by the name of the sign."""
    seen = {name: look(run) for name, look in SIGNS.items()}
    return {name: words for name, words in seen.items() if words is not None}
