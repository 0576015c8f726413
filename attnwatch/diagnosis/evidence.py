"""Evidence that the rules read: statistics of sites over time, and the symptoms that rules report.

Heads are reduced to sites once for each observation (see `AttentionHistory.of_each_observation`), so judging a run
again costs only the new observations.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import SupportsFloat

import numpy as np

from attnwatch.diagnosis.hysteresis import Flags, flags
from attnwatch.diagnosis.risk import RiskEstimate, RiskModel
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.recorder import AttentionHistory, Values
from attnwatch.utils.messages import listed
from attnwatch.utils.reductions import nan_max, nan_mean


@dataclass(frozen=True)
class Symptom:
    """Observation of a rule. `diagnose` decides whether it bears on the status of the run.

    Attributes:
        sites: names of the affected sites; empty if the whole run is affected.
        step: global step since which it holds.
        share: share of the observed sites, 0 to 1; 1 for the whole run.
        severity: severity of the finding if it bears on the status, from 0 to 1 (the run is lost).
        what: first half of the message: what was seen, with its numbers.
        numbers: evidence by name.
        is_note: True if the rule itself says that the symptom does not bear on the status.
    """

    sites: tuple[str, ...]
    step: int
    share: float
    severity: float
    what: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    is_note: bool = False


class Evidence:
    """Observed part of a history, which `diagnose` gives to the rules.

    Attributes:
        history: history without the steps at which nothing was observed.
        sites: names of the sites that were observed, in module order.
        thresholds: amount of evidence that findings need.
        risk: estimate of the risk that the run fails.
        has_loss_alone: True if the history has no sites, so that only its loss can be judged.
    """

    def __init__(
        self, history: AttentionHistory, thresholds: Thresholds, risk_model: RiskModel, total_steps: int | None
    ):
        self.has_loss_alone = not history.sites
        observed = history.of_each_observation("is observed", is_observed)
        steps = np.any(observed, axis=1) | self.has_loss_alone
        self.history = history if steps.all() else history.at(steps)
        self._is_observed = np.any(observed, axis=0)
        self.sites = tuple(site for site, seen in zip(history.sites, self._is_observed, strict=True) if seen)
        self.thresholds = thresholds
        self.risk = RiskEstimate(self.history, risk_model, total_steps)

    def __len__(self) -> int:
        return len(self.history)

    @property
    def steps(self) -> np.ndarray:
        """Global steps of the observations, int64 [observations]."""
        return self.history.steps

    @cached_property
    def is_enough(self) -> bool:
        """True if the run was observed long enough to be judged."""
        return self.thresholds.is_enough(self.steps)

    def mean(self, statistic: str) -> np.ndarray:
        """Return the mean of a statistic over the heads, [observations, sites]; nan where nothing was observed."""
        return self.reduced(("mean", statistic), lambda values: nan_mean(values[statistic]))

    def largest(self, statistic: str) -> np.ndarray:
        """Return the maximum of a statistic over the heads, [observations, sites]; nan where nothing was observed."""
        return self.reduced(("largest", statistic), lambda values: nan_max(values[statistic]))

    def reduced(self, key: Hashable, function: Callable[[Values], np.ndarray]) -> np.ndarray:
        """Return a function of the heads' statistics, [observations, sites].

        It is computed once for each observation, however often the run is judged. A rule that reads arrays of `history`
        instead makes later rules compute everything again.

        Args:
            key: unique key of the function and of the numbers that it depends on.
            function: maps arrays [..., sites, heads] by statistic to [..., sites].
        """
        return self.of_sites(self.history.of_each_observation(key, function))

    def of_sites(self, values: np.ndarray) -> np.ndarray:
        """Return the columns of the observed sites of an array [observations, all sites of the history]."""
        return values[:, self._is_observed]

    def flags(self, enter: np.ndarray, leave: np.ndarray, *, patience: int | None = None) -> Flags:
        """Raise and lower a flag for each site; see `attnwatch.diagnosis.hysteresis.flags`.

        Comparisons with nan are false, so missing observations change no flag.

        Args:
            enter, leave: conditions that raise and lower a flag, bool [observations, sites].
            patience: number of observations in a row that a change takes; None means that of the thresholds.
        """
        return flags(enter, leave, patience=self.thresholds.patience if patience is None else patience)

    def symptom(
        self,
        found: Flags,
        what: str,
        *,
        severity: SupportsFloat,
        numbers: Mapping[str, float] | None = None,
        where: np.ndarray | None = None,
        is_note: bool = False,
    ) -> Symptom | None:
        """Return the symptom that holds where a flag is up; None if no flag is up.

        Args:
            found: flags of the observed sites, from `flags`.
            what: what was seen, without the sites, which are added.
            severity: severity, from 0 to 1.
            numbers: evidence by name.
            where: affected sites, bool [sites], if there are more than those whose flag is up.
            is_note: see `Symptom`.

        Raises:
            ValueError: `found` or `where` does not have one flag for each observed site.
        """
        where = found.now if where is None else where
        if where.shape != (len(self.sites),) or found.now.shape != where.shape:
            raise ValueError(f"expected one flag for each of {len(self.sites)} observed sites, got {where.shape}")
        if not found.now.any():
            return None
        sites = tuple(self.sites[index] for index in np.flatnonzero(where))
        what = f"{what} at {len(sites)} of {len(where)} sites ({listed(sites)})"
        step = int(self.steps[found.since])
        return Symptom(sites, step, len(sites) / len(where), float(severity), what, numbers or {}, is_note)


def latest(values: np.ndarray) -> np.ndarray:
    """Return the last observed value along the first axis, as not every site is called in every step.

    Example:
        >>> latest(np.array([[1.0, 2.0], [3.0, np.nan]]))
        array([3., 2.])
    """
    last = len(values) - 1 - (~np.isnan(values))[::-1].argmax(0)
    return np.take_along_axis(values, last[None], axis=0)[0]


def earliest(values: np.ndarray, number: int) -> np.ndarray:
    """Return the values along the first axis, with nan for all but the first `number` observed ones."""
    is_first = np.cumsum(~np.isnan(values), axis=0) <= number
    return np.where(is_first, values, np.nan)


def is_observed(values: Values) -> np.ndarray:
    """Return which sites were observed, bool [..., sites]."""
    return np.any(np.isfinite(values["nonfinite"]) | np.isfinite(values["normalized_entropy"]), axis=-1)
