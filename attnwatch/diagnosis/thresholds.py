"""Thresholds that all findings share, and the checks of all thresholds."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import numpy as np

from attnwatch.errors import ConfigurationError
from attnwatch.recorder.history import num_steps
from attnwatch.utils.arguments import require_int

# About as long as the warm-up of a long run.
_MAX_MIN_STEPS = 1000


@dataclass(frozen=True)
class Thresholds:
    """Amount of evidence that a diagnosis needs. The thresholds of a single finding are fields of its rule.

    Args:
        min_observations: observations before which only findings that are `known_at_once` are reported.
        min_steps: steps before which only findings that are `known_at_once` are reported.
        patience: observations in a row before a flag comes up or goes down, so that noise does neither.
        widespread: share of the sites from which on a finding decides the status of the whole run.

    Raises:
        ConfigurationError: a threshold is not a number, or too small.

    Example:
        >>> Thresholds(patience=3).of_budget(2000)
        Thresholds(min_observations=10, min_steps=200.0, patience=3, widespread=0.5)
    """

    min_observations: int = 10
    min_steps: float = 100
    patience: int = 5
    widespread: float = 0.5

    def of_budget(self, total_steps: int | None) -> "Thresholds":
        """Return the thresholds for a run of this many steps, of which a tenth, but at most 1,000, must be over.

        A run of fewer than `min_steps` steps is not judged at all.
        """
        if total_steps is None or total_steps < self.min_steps:
            return self
        return replace(self, min_steps=min(total_steps / 10, _MAX_MIN_STEPS))

    def is_enough(self, steps: np.ndarray) -> bool:
        """Return whether a run that was observed at these steps, int64 [steps], was watched for long enough."""
        return len(steps) >= self.min_observations and num_steps(steps) >= self.min_steps

    def __post_init__(self) -> None:
        require_not_negative(self, (each.name for each in fields(self)))
        require_int("min_observations", self.min_observations, minimum=1)
        require_int("patience", self.patience, minimum=1)


def require_not_negative(owner: Any, names: Iterable[str]) -> None:
    """Raise a `ConfigurationError` unless these attributes are numbers of at least 0."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, Real) or not float(value) >= 0:
            raise ConfigurationError(f"`{name}` must be a number of at least 0, got {value!r}.")
