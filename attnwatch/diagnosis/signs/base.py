"""Registry of signs."""

from collections.abc import Callable

from attnwatch.diagnosis.course import RunCourse

Sign = Callable[[RunCourse], str | None]
"""Function that returns what was seen, in words with numbers; None if it was not."""

SIGNS: dict[str, Sign] = {}


def sign(function: Sign) -> Sign:
    """Register a sign under the name of its function."""
    SIGNS[function.__name__] = function
    return function
