"""Risk that a run fails, a transparent function of its signals.

A signal counts by how far it lies outside of the range that it has in sound runs when as much of the budget is over.
The distances, each at most `MAX_DISTANCE`, are weighted, added up, and passed through the logistic function.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from attnwatch.diagnosis.signals import SIGNALS, evidence_of, numbers_of
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory

MAX_DISTANCE = 4.0
_ARRAYS = ("shares", "low", "high", "width", "below", "above")


@dataclass(frozen=True, eq=False)
class RiskModel:
    """Logistic model of the risk that a run fails. `python -m tools.tune_risk_model` fits its numbers.

    Attributes:
        shares: float64 [shares]: shares of the budget for which the ranges are known, ascending; between them the
            ranges are interpolated.
        low, high: float64 [shares, signals]: range of sound runs.
        width: float64 [signals]: spread of sound runs, the unit of distances.
        below, above: float64 [signals]: weights of the distances, not negative.
        offset: log odds of a run within all ranges.
        flag_at: risk from which on a run is flagged, which few sound runs of the tuning reached.

    Example:
        >>> default_risk_model().flag_at
        0.8203
    """

    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    width: np.ndarray
    below: np.ndarray
    above: np.ndarray
    offset: float
    flag_at: float

    @classmethod
    def zero(cls) -> "RiskModel":
        """Return a model that gives every run a risk of 0, so that `diagnose` judges by the rules alone."""
        numbers = np.zeros(len(SIGNALS))
        bounds = {"low": numbers[None] - np.inf, "high": numbers[None] + np.inf, "width": numbers + 1.0}
        return cls(np.ones(1), **bounds, below=numbers, above=numbers, offset=-np.inf, flag_at=np.inf)

    def risk(self, history: AttentionHistory, share: float | None = None) -> float:
        """Return the risk of a run, 0 to 1.

        Args:
            history: of the run so far.
            share: of the budget that is over; None if the budget is unknown: then only signals that lie outside of the
                ranges of all shares count.
        """
        distances = self.distances(evidence_of(history)[None], share)
        return float(self.risks(distances)[0])

    def distances(self, signals: np.ndarray, share: float | None) -> np.ndarray:
        """Return how far signals [runs, signals] lie below their ranges, then above: [runs, 2 · signals]."""
        low, high = self._range(share)
        outside = np.concatenate([low - signals, signals - high], axis=1) / np.tile(self.width, 2)
        return np.nan_to_num(np.clip(outside, 0.0, MAX_DISTANCE), nan=0.0)

    def risks(self, distances: np.ndarray) -> np.ndarray:
        """Return the risks [runs] that follow from distances [runs, 2 · signals]."""
        odds = self.offset + distances @ np.concatenate([self.below, self.above])
        return np.exp(-np.logaddexp(0.0, -odds))

    def contributions(self, history: AttentionHistory, share: float | None = None) -> dict[str, float]:
        """Return what each signal adds to the log odds, largest first, by what it means in words, with its number."""
        distances = self.distances(evidence_of(history)[None], share)[0] * np.concatenate([self.below, self.above])
        shown = [signal.shown.format(number) for signal, number in zip(SIGNALS, numbers_of(history), strict=True)]
        meanings = [signal.below for signal in SIGNALS] + [signal.above for signal in SIGNALS]
        words = [f"{meaning} ({number})" for meaning, number in zip(meanings, 2 * shown, strict=True)]
        return {words[index]: float(distances[index]) for index in np.argsort(-distances) if distances[index] > 0}

    def _range(self, share: float | None) -> tuple[np.ndarray, np.ndarray]:
        if share is None:
            return self.low.min(0), self.high.max(0)
        place = np.log(np.clip(share, self.shares[0], self.shares[-1]))
        low, high = (
            np.array([np.interp(place, np.log(self.shares), column) for column in bound.T])
            for bound in (self.low, self.high)
        )
        return low, high

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, rounded, and the names of the signals that they belong to."""
        rounded = {name: np.round(getattr(self, name), 4).tolist() for name in _ARRAYS}
        named = {"signals": [signal.name for signal in SIGNALS], **rounded}
        return {**named, "offset": round(self.offset, 4), "flag_at": round(self.flag_at, 4)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "RiskModel":
        """Return the model that `to_json` stored.

        Raises:
            ConfigurationError: it was tuned on other signals.
        """
        if list(stored["signals"]) != [signal.name for signal in SIGNALS]:
            raise ConfigurationError(f"`stored` is of other signals ({', '.join(stored['signals'])}): tune it anew.")
        arrays = {name: np.array(stored[name]) for name in _ARRAYS}
        return cls(**arrays, offset=stored["offset"], flag_at=stored["flag_at"])


# A risk is high from `flag_at` on, and low again below this share of it.
_LOW = 0.9
_ELEVATED = 0.7  # 5 of 98 sound stored runs reach it at some look; 18 of 98 reach 0.5
_LATE_START = 0.05  # share of the budget
# A run starts to learn if the spread of its logits grows (those that grow more than tenfold began near zero, or
# diverge), and its loss falls by so many standard errors, or its entropy moves by so many units of its noise.
_GROWTH, _TREND, _MOVEMENT = (1.2, 10.0), 1.5, 12.0
_DEADLINE = 0.5  # share of the budget


@dataclass(frozen=True)
class RiskEstimate:
    """Estimate of the risk that a run fails, by what was observed of it.

    Attributes:
        history: observations so far, at least one.
        model: model of the risk.
        total_steps: steps that the run will have; None if unknown.
    """

    history: AttentionHistory
    model: RiskModel
    total_steps: int | None

    @cached_property
    def value(self) -> float:
        """Risk, 0 to 1; nan where it is too early for the model, or the run was not watched from its beginning.

        It is nan without attention too: the model knows sound runs by attention and loss together.
        """
        memo, given = self.history.memo(-1), (self.model, self.total_steps)
        if memo.get("risk", (None,))[0] != given:
            is_early = self._share is not None and self._share < self.model.shares[0]
            is_unknown = is_early or self.starts_late or not self.history.sites
            memo["risk"] = given, math.nan if is_unknown else self.model.risk(self.history, self._share)
        return memo["risk"][1]

    @property
    def is_high(self) -> bool:
        """True if the model flags the run."""
        return self.value >= self.model.flag_at

    @property
    def is_elevated(self) -> bool:
        """True if the risk is too large to call the run healthy, though perhaps too small to flag it."""
        return self.value >= min(_ELEVATED, self.model.flag_at)

    @property
    def is_low(self) -> bool:
        """True if the risk is clearly below the one that the model flags."""
        return self.value < _LOW * self.model.flag_at

    @property
    def is_calibrated(self) -> bool:
        """True if the model knows the ranges of sound runs at this share of the budget."""
        is_late_enough = self._share is not None and self._share >= self.model.shares[0]
        return bool(is_late_enough and np.isfinite(self.model.flag_at))

    @property
    def starts_late(self) -> bool:
        """True if the run was not watched from its beginning, so that its progress is unknown."""
        return self.total_steps is not None and bool(self.history.steps[0] > _LATE_START * self.total_steps)

    @property
    def is_starting_to_learn(self) -> bool:
        """True if attention tells keys apart more and more, and the loss falls or attention clearly moves.

        Sound runs that start slowly resemble failing ones in all else, and attention moves before the loss leaves its
        plateau (arXiv 2506.13688). They have half of the budget, where it is known, and more while the risk falls.
        """
        if self._share is not None and self._share >= _DEADLINE and self.is_high:
            return False
        numbers = dict(zip((signal.name for signal in SIGNALS), numbers_of(self.history), strict=True))
        grows = _GROWTH[0] <= numbers["logit_growth"] <= _GROWTH[1]
        return bool(grows and (numbers["loss_trend"] >= _TREND or numbers["movement"] >= _MOVEMENT))

    @property
    def reasons(self) -> dict[str, float]:
        """Contributions of the signals to the log odds; see `RiskModel.contributions`."""
        return self.model.contributions(self.history, self._share)

    def since_when_high(self, thresholds: Thresholds) -> int | None:
        """Return the step since which the risk has been high; None if it is not, or has not lasted.

        It has lasted if, since it was last low or too little was observed, it has been high at two observations that
        are `thresholds.patience` observations apart.
        """
        high, least, steps = [], _LOW * self.model.flag_at, self.history.steps
        number = len(steps)
        while thresholds.is_enough(steps[:number]) and (risk := self._value_after(number)) >= least:
            high += [number] if risk >= self.model.flag_at else []
            number -= 1
        return int(steps[number]) if high and high[0] - high[-1] >= thresholds.patience else None

    def _value_after(self, number: int) -> float:
        """Return the risk after this many observations."""
        given, risk = self.history.memo(number - 1).get("risk", (None, math.nan))
        if given == (self.model, self.total_steps):
            return risk
        return replace(self, history=self.history.first(number)).value

    @property
    def _share(self) -> float | None:
        """Share of the budget that is over; None if the budget is unknown."""
        if self.total_steps is None:
            return None
        return min(float(self.history.steps[-1] + self.history.gap) / self.total_steps, 1.0)


@cache
def default_risk_model() -> RiskModel:
    """Return the model that was tuned on all tasks of the benchmark."""
    return RiskModel.from_json(json.loads((files("attnwatch.diagnosis") / "risk_model.json").read_text()))
