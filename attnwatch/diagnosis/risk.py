"""How likely a run is to fail, from its signals: as transparent as a model can be.

A signal counts by how far it lies outside of the range that it has in sound runs when as much of the budget is over.
The distances, each at most `MOST`, are weighted, added up, and passed through the logistic function.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from attnwatch.diagnosis.signals import SIGNALS, numbers_of, signals_of
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory

MOST = 4.0
_LATE = 0.05  # share of the budget


@dataclass(frozen=True, eq=False)
class RiskModel:
    """Numbers come from `python -m tools.tune_risk_model`, none by hand.

    Attributes:
        shares: of the budget, ascending: where the ranges are known; between them they are interpolated.
        low, high: [shares, signals]: the range of sound runs.
        width: [signals]: the spread of sound runs, the unit of distances.
        below, above: [signals]: weights, not negative.
        offset: log odds of a run within all ranges.
        flag_at: risk from which on a run is flagged: few sound runs of the tuning reached it.
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
    def unknowing(cls) -> "RiskModel":
        """One that foresees nothing: where it is given to `diagnose`, the rules judge alone."""
        numbers = np.zeros(len(SIGNALS))
        bounds = {"low": numbers[None] - np.inf, "high": numbers[None] + np.inf, "width": numbers + 1.0}
        return cls(np.ones(1), **bounds, below=numbers, above=numbers, offset=-np.inf, flag_at=np.inf)

    def risk(self, history: AttentionHistory, share: float | None = None) -> float:
        """0 to 1, of a run whose history this is.

        Args:
            share: of the budget that is over; None where the budget is not known: then only what lies outside of the
                ranges at every share counts.
        """
        distances = self.distances(signals_of(history)[None], share)
        return float(self.risks(distances)[0])

    def distances(self, signals: np.ndarray, share: float | None) -> np.ndarray:
        """[runs, 2 · signals]: how far each signal [runs, signals] lies below its range, then how far above."""
        low, high = self._range(share)
        outside = np.concatenate([low - signals, signals - high], axis=1) / np.tile(self.width, 2)
        return np.nan_to_num(np.clip(outside, 0.0, MOST), nan=0.0)

    def risks(self, distances: np.ndarray) -> np.ndarray:
        odds = self.offset + distances @ np.concatenate([self.below, self.above])
        return np.exp(-np.logaddexp(0.0, -odds))

    def contributions(self, history: AttentionHistory, share: float | None = None) -> dict[str, float]:
        """What each signal adds to the log odds, largest first, in words."""
        distances = self.distances(signals_of(history)[None], share)[0] * np.concatenate([self.below, self.above])
        words = [signal.below for signal in SIGNALS] + [signal.above for signal in SIGNALS]
        return {words[index]: float(distances[index]) for index in np.argsort(-distances) if distances[index] > 0}

    def _range(self, share: float | None) -> tuple[np.ndarray, np.ndarray]:
        if share is None:
            return self.low.min(0), self.high.max(0)
        place = np.log(np.clip(share, self.shares[0], self.shares[-1]))
        return tuple(
            np.array([np.interp(place, np.log(self.shares), column) for column in bound.T])
            for bound in (self.low, self.high)
        )

    def to_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("shares", "low", "high", "width", "below", "above")}
        rounded = {name: np.round(array, 4).tolist() for name, array in numbers.items()}
        named = {"signals": [signal.name for signal in SIGNALS], **rounded}
        return {**named, "offset": round(self.offset, 4), "flag_at": round(self.flag_at, 4)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "RiskModel":
        """Raises a `ConfigurationError` where the model is of other signals than today's."""
        if list(stored["signals"]) != [signal.name for signal in SIGNALS]:
            raise ConfigurationError(f"`stored` is of other signals ({', '.join(stored['signals'])}): tune it anew.")
        arrays = {name: np.array(stored[name]) for name in ("shares", "low", "high", "width", "below", "above")}
        return cls(**arrays, offset=stored["offset"], flag_at=stored["flag_at"])


# A risk is high from `flag_at` on, and no longer below this share of it.
_LEAVE = 0.9
_HALF = 0.5  # of the budget
_WATCH = 0.7  # sound runs seldom reach it: 3 of 40 stored ones, at any look; 9 of 40 reach 0.5
# Of the spread of the logits; standard errors of the loss's fall; units of the entropy's noise.
_WAKING_GROWTH, _WAKING_TREND, _WAKING_MOVEMENT = (1.2, 10.0), 1.5, 12.0


@dataclass(frozen=True)
class Outlook:
    """How likely a run is to fail, by what was seen of it.

    Attributes:
        history: of what was seen.
        model: that says so.
        total_steps: that the run will have; None where nobody knows.
    """

    history: AttentionHistory
    model: RiskModel
    total_steps: int | None

    @property
    def is_known(self) -> bool:
        """Whether it is known what sound runs have by now: from the first of the model's shares on."""
        is_late_enough = self._share is not None and self._share >= self.model.shares[0]
        return bool(is_late_enough and np.isfinite(self.model.flag_at))

    @cached_property
    def risk(self) -> float:
        """Nan where nothing can be said: too early, or not watched from the beginning."""
        memo, given = self.history.memo(-1), (self.model, self.total_steps)
        if memo.get("risk", (None,))[0] != given:
            is_early = self._share is not None and self._share < self.model.shares[0]
            is_unknown = is_early or self.begins_late
            memo["risk"] = given, math.nan if is_unknown else self.model.risk(self.history, self._share)
        return memo["risk"][1]

    @property
    def is_high(self) -> bool:
        return self.risk >= self.model.flag_at

    @property
    def is_worth_watching(self) -> bool:
        """Whether nobody would call a run of this risk healthy, though it may be too low for an alarm."""
        return self.risk >= min(_WATCH, self.model.flag_at)

    @property
    def is_low(self) -> bool:
        return self.risk < _LEAVE * self.model.flag_at

    @property
    def begins_late(self) -> bool:
        """Whether the run was not watched from its beginning, so that nobody knows how far it has come."""
        return self.total_steps is not None and bool(self.history.steps[0] > _LATE * self.total_steps)

    @property
    def is_waking(self) -> bool:
        """Whether attention has begun to tell keys apart, while the loss falls or clearly so, and there is time left.

        Sound runs that start slowly look like failing ones by all else, and attention moves before the loss leaves its
        plateau (arXiv 2506.13688). They have half of the budget, where it is
        known, and more while the risk falls. Logits whose spread grows more than tenfold began near zero, or diverge.
        """
        if self._share is not None and self._share >= _HALF and self.is_high:
            return False
        numbers = dict(zip((signal.name for signal in SIGNALS), numbers_of(self.history), strict=True))
        grows = _WAKING_GROWTH[0] <= numbers["logit_growth"] <= _WAKING_GROWTH[1]
        return bool(grows and (numbers["loss_trend"] >= _WAKING_TREND or numbers["movement"] >= _WAKING_MOVEMENT))

    @property
    def reasons(self) -> dict[str, float]:
        """See `RiskModel.contributions`."""
        return self.model.contributions(self.history, self._share)

    def since_when_high(self, patience: int, is_enough: Callable[[np.ndarray], bool]) -> int | None:
        """The step since which the risk has been high; None where it is not, or has not lasted.

        It has lasted where, since it was last low or too little was known, it has been high at two observations
        that are `patience` apart.

        Args:
            patience: in observations.
            is_enough: whether a run that was observed at these steps is judged.
        """
        high, least, steps = [], _LEAVE * self.model.flag_at, self.history.steps
        number = len(steps)
        while is_enough(steps[:number]) and (risk := self._risk_after(number)) >= least:
            high += [number] if risk >= self.model.flag_at else []
            number -= 1
        return int(steps[number]) if high and high[0] - high[-1] >= patience else None

    def _risk_after(self, number: int) -> float:
        """After so many observations."""
        given, risk = self.history.memo(number - 1).get("risk", (None, math.nan))
        if given == (self.model, self.total_steps):
            return risk
        return replace(self, history=self.history.first(number)).risk

    @property
    def _share(self) -> float | None:
        """Of the budget that is over; None where that is not known."""
        if self.total_steps is None:
            return None
        return min(float(self.history.steps[-1] + self.history.gap) / self.total_steps, 1.0)


@cache
def default_risk_model() -> RiskModel:
    """The one that was tuned on all tasks."""
    return RiskModel.from_json(json.loads((files(__package__) / "risk_model.json").read_text()))
