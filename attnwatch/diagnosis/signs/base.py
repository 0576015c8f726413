"""Registry of signs, and functions that they share."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from attnwatch.diagnosis.course import RunCourse
from attnwatch.utils.labels import site_labels
from attnwatch.utils.messages import listed

Sign = Callable[[RunCourse], str | None]
"""Function that returns what was seen, in words with numbers; None if it was not."""

SIGNS: dict[str, Sign] = {}


def sign(function: Sign) -> Sign:
    """Register a sign under the name of its function. It is computed once per run."""

    @functools.wraps(function)
    def look(run: RunCourse) -> str | None:
        return run.memo(function.__name__, function)

    SIGNS[function.__name__] = look
    return look


def layers_of(sites: Sequence[str], which: np.ndarray) -> str:
    """Return the labels of some of the sites, at most three, and how many more there are."""
    labels = site_labels(sites)
    return listed([labels[index] for index in np.flatnonzero(which)])
