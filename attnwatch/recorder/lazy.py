"""Arrays of a history that are copied at first access.

512 observations of 96 layers of 128 heads take 302 MB, and the diagnosis reads a fraction of that.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Observation:
    """Statistics of one step.

    Attributes:
        step: global step.
        values: statistics, float32 [statistics, sites, heads]; never changed.
        loss: training loss; nan if it was not recorded.
        layers: layer statistics by name, each float32 [sites]; never changed.
        memo: memoized results that depend on this observation and those before it.
    """

    step: int
    values: np.ndarray
    loss: float
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)
    memo: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def by_name(self, statistics: Iterable[str]) -> dict[str, np.ndarray]:
        """Return arrays [sites, heads] by name, given the names of all statistics in order."""
        return dict(zip(statistics, self.values, strict=True))


class ObservedValues(Mapping[str, np.ndarray]):
    """Arrays [steps, sites, heads] by statistic, stacked from observations.

    Args:
        observations: observation of each step.
        statistics: names of their statistics, in order.
        num_sites, num_heads: shape of the arrays; observations with fewer heads are padded with nan.

    Attributes:
        observations: observation of each step.
    """

    def __init__(self, observations: Sequence[Observation], statistics: Iterable[str], num_sites: int, num_heads: int):
        self.observations = observations
        self._places = {name: place for place, name in enumerate(statistics)}
        self._shape = (num_sites, num_heads)
        self._stacked: dict[str, np.ndarray] = {}

    @property
    def is_read(self) -> bool:
        """True if an array was returned to a caller, who may have changed it."""
        return bool(self._stacked)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._stacked:
            stacked = np.empty((len(self.observations), *self._shape), dtype=np.float32)
            for row, observation in zip(stacked, self.observations, strict=True):
                heads = observation.values.shape[2]
                row[:, :heads], row[:, heads:] = observation.values[self._places[name]], np.nan
            self._stacked[name] = stacked
        return self._stacked[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def at(self, steps: np.ndarray | slice) -> Values:
        if self.is_read:
            return SelectedValues(self, steps)
        indices = np.arange(len(self.observations))[steps]
        return ObservedValues([self.observations[index] for index in indices], self._places, *self._shape)

    def of_each(self, key: Hashable, function: Callable[[Values], np.ndarray]) -> np.ndarray:
        """Apply a function to the arrays [sites, heads] of each observation, once for each, and stack the results."""
        return np.stack([self._remembered(observation, key, function) for observation in self.observations])

    def _remembered(
        self, observation: Observation, key: Hashable, function: Callable[[Values], np.ndarray]
    ) -> np.ndarray:
        if key not in observation.memo:
            observation.memo[key] = function(observation.by_name(self._places))
        return observation.memo[key]


class ObservedLayers(Mapping[str, np.ndarray]):
    """Arrays [steps, sites] by layer statistic, stacked from observations at first access.

    Args:
        observations: observation of each step; statistics that an observation lacks are nan.
        statistics: names of the layer statistics, in order.
        num_sites: number of sites.
    """

    def __init__(self, observations: Sequence[Observation], statistics: Iterable[str], num_sites: int):
        self._observations, self._names, self._num_sites = observations, tuple(statistics), num_sites
        self._stacked: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._stacked:
            self._stacked[name] = np.full((len(self._observations), self._num_sites), np.nan, dtype=np.float32)
            for row, observation in zip(self._stacked[name], self._observations, strict=True):
                row[:] = observation.layers.get(name, np.nan)
        return self._stacked[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def at(self, steps: np.ndarray | slice) -> Values:
        if self._stacked:
            return SelectedValues(self, steps)
        indices = np.arange(len(self._observations))[steps]
        return ObservedLayers([self._observations[index] for index in indices], self._names, self._num_sites)


class SelectedValues(Mapping[str, np.ndarray]):
    """Some of the steps of other arrays."""

    def __init__(self, values: Values, steps: np.ndarray | slice):
        self._values, self._steps = values, steps
        self._selected: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._selected:
            self._selected[name] = self._values[name][self._steps]
        return self._selected[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values
