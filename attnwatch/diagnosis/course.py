"""Course of a run: its loss, and the logits and entropies of its layers, with what noise alone would show."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from attnwatch.diagnosis.evidence import Evidence
from attnwatch.utils.reductions import nan_max, second_differences

# Fewer observations show no course.
MIN_OBSERVATIONS = 9
_LEAST = 1e-30

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Curve:
    """One or more series over time, without gaps.

    Attributes:
        steps: int64 [observations].
        values: float64 [observations, series].
        names: of the series.
    """

    steps: np.ndarray
    values: np.ndarray
    names: tuple[str, ...] = ()

    @cached_property
    def noise(self) -> np.ndarray:
        """Standard deviation of a single observation, [series]."""
        return np.sqrt(np.mean(second_differences(self.values) ** 2, axis=0) / 6)

    @property
    def start(self) -> np.ndarray:
        """First values, [series]."""
        return self.values[0]

    @cached_property
    def now(self) -> np.ndarray:
        """Mean of the last tenth, [series]."""
        return self.values[-self._tenth :].mean(0)

    @cached_property
    def smooth(self) -> np.ndarray:
        """Running mean over a tenth of the run, [windows, series]; window i begins with observation i."""
        sums = np.cumsum(np.concatenate([np.zeros_like(self.values[:1]), self.values - self.values[0]]), axis=0)
        return (sums[self._tenth :] - sums[: -self._tenth]) / self._tenth + self.values[0]

    def since(self, index: int) -> "Curve":
        """Return the part from an observation on."""
        return Curve(self.steps[index:], self.values[index:], self.names)

    @cached_property
    def change(self) -> np.ndarray:
        """Mean of the last third less that of the first, in standard errors: [series]."""
        number = max(len(self.values) // 3, 1)
        difference = self.values[-number:].mean(0) - self.values[:number].mean(0)
        scale = np.maximum(np.abs(self.values).max(0), _LEAST)
        # Float32 rounds at 1e-7 of the value.
        error = np.maximum(self.noise, 1e-6 * scale) * np.sqrt(2 / number)
        return difference / error

    @property
    def _tenth(self) -> int:
        return max(3, len(self.values) // 10)


class RunCourse:
    """Numbers of a run that signs read; see `attnwatch.diagnosis.signs`.

    Attributes:
        evidence: of the run.
    """

    def __init__(self, evidence: Evidence):
        self.evidence = evidence
        self._memo: dict[str, Any] = {}

    def memo(self, key: str, function: "Callable[[RunCourse], ResultT]") -> "ResultT":
        """Return what a function makes of this run, which it is called for once."""
        if key not in self._memo:
            self._memo[key] = function(self)
        result: ResultT = self._memo[key]
        return result

    @cached_property
    def loss(self) -> Curve | None:
        """Loss while it was finite, one series; None where too little of it is known."""
        loss = self.evidence.history.loss
        known = np.isfinite(loss)
        if known.sum() < MIN_OBSERVATIONS:
            return None
        return Curve(self.evidence.steps[known], loss[known, None])

    @cached_property
    def spread(self) -> Curve | None:
        """Log of the spread of the logits, mean over the heads, one series a layer."""
        return self._curve("logit_std", is_log=True)

    @cached_property
    def entropy(self) -> Curve | None:
        """Normalized entropy, mean over the heads, one series a layer."""
        return self._curve("normalized_entropy")

    @cached_property
    def max_entropy(self) -> Curve | None:
        """Log of the number of visible keys, mean over the rows, one series a layer."""
        return self._curve("max_entropy")

    @cached_property
    def largest_logits(self) -> np.ndarray:
        """Largest logit of any head, [observations]; nan where it is unknown."""
        return nan_max(self.evidence.largest("max_logit"))

    @cached_property
    def nonfinite(self) -> np.ndarray:
        """Largest share of query rows whose logits are not finite, [observations]."""
        return nan_max(self.evidence.largest("nonfinite"))

    def layers(self, statistic: str) -> np.ndarray:
        """Return a layer statistic of the observed sites, [observations, sites]; nan if it is missing."""
        columns = self.evidence.history.layers
        if statistic not in columns:
            return np.full((len(self.evidence), len(self.evidence.sites)), np.nan)
        return self.evidence.of_sites(columns[statistic]).astype(np.float64)

    def _curve(self, statistic: str, *, is_log: bool = False) -> Curve | None:
        values = self.evidence.mean(statistic)
        known = np.isfinite(values)
        if len(known) < MIN_OBSERVATIONS:
            return None
        is_there = known.mean(0) >= 0.5 * known.mean(0).max(initial=0)
        complete = known[:, is_there].all(1) if is_there.any() else np.zeros(len(values), dtype=bool)
        if complete.sum() < MIN_OBSERVATIONS:
            return None
        kept = values[complete][:, is_there].astype(np.float64)
        names = tuple(site for site, there in zip(self.evidence.sites, is_there, strict=True) if there)
        return Curve(self.evidence.steps[complete], np.log(np.maximum(kept, _LEAST)) if is_log else kept, names)
