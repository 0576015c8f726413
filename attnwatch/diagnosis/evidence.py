"""What the rules read of a history: numbers of sites over time.

Heads are reduced to sites once for each observation (see `AttentionHistory.of_each_observation`), so that judging a
run again costs what the observations since the last time cost.
"""

from collections.abc import Callable, Hashable

import numpy as np

from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.recorder import AttentionHistory, Values
from attnwatch.utils.reductions import nan_max, nan_mean


class Evidence:
    """A history without sites and steps at which nothing was observed.

    Attributes:
        history: without those steps.
        sites: names of the sites that were observed.
    """

    def __init__(self, history: AttentionHistory):
        observed = history.of_each_observation("is observed", _is_observed)
        steps = observed.any(1)
        self.history = history if steps.all() else history.at(steps)
        self._is_observed = observed.any(0)
        self.sites = tuple(site for site, seen in zip(history.sites, self._is_observed, strict=True) if seen)

    def __len__(self) -> int:
        return len(self.history)

    @property
    def steps(self) -> np.ndarray:
        """Int64 [steps]."""
        return self.history.steps

    def of_sites(self, values: np.ndarray) -> np.ndarray:
        """The sites that were observed, of an array [steps, all sites of the history]."""
        return values[:, self._is_observed]

    def mean(self, statistic: str) -> np.ndarray:
        """Mean over the heads: [steps, sites]."""
        return self._reduced(("mean", statistic), lambda values: nan_mean(values[statistic]))

    def largest(self, statistic: str) -> np.ndarray:
        """Maximum over the heads: [steps, sites]."""
        return self._reduced(("largest", statistic), lambda values: nan_max(values[statistic]))

    @property
    def sees_one_key(self) -> np.ndarray:
        """1 where every row of every head saw one key only, 0 where it did not, nan for none: [steps, sites]."""
        return self._reduced("sees one key", _sees_one_key)

    def share_of_sharp_heads(self, threshold: float, thresholds: Thresholds) -> np.ndarray:
        """Share of the observed heads whose normalized entropy is below a threshold: [steps, sites], nan for none."""
        return self._reduced(
            ("sharp", threshold, thresholds.sink_mass),
            lambda values: _share_below(_beside_sink(values, thresholds.sink_mass), threshold),
        )

    def entropy_beside_sinks(self, thresholds: Thresholds) -> np.ndarray:
        """Normalized entropy, of the weights beside the sink where a head has one, mean over heads: [steps, sites]."""
        return self._reduced(
            ("beside sinks", thresholds.sink_mass), lambda values: nan_mean(_beside_sink(values, thresholds.sink_mass))
        )

    def _reduced(self, key: Hashable, reduce: Callable[[Values], np.ndarray]) -> np.ndarray:
        return self.of_sites(self.history.of_each_observation(key, reduce))


def _is_observed(values: Values) -> np.ndarray:
    return (np.isfinite(values["nonfinite"]) | np.isfinite(values["normalized_entropy"])).any(-1)


def _sees_one_key(values: Values) -> np.ndarray:
    """Only then are logits known to be finite and their entropy is not (see `AttentionRows.counts_as_finite`)."""
    is_known = np.isfinite(values["nonfinite"])
    sees_one = (values["nonfinite"] == 0) & np.isnan(values["normalized_entropy"])
    return np.where(is_known.any(-1), (sees_one | ~is_known).all(-1), np.nan)


def _beside_sink(values: Values, sink_mass: float) -> np.ndarray:
    beside_sink = values["entropy_without_sink"] / np.maximum(values["max_entropy"], 1e-6)
    return np.where(values["sink_mass"] > sink_mass, beside_sink, values["normalized_entropy"])


def _share_below(values: np.ndarray, threshold: float) -> np.ndarray:
    observed = np.isfinite(values)
    number = observed.sum(-1)
    return np.where(number > 0, (observed & (values < threshold)).sum(-1) / np.maximum(number, 1), np.nan)
