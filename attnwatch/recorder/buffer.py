"""Bounded store of observations on the host."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from attnwatch.errors import ConfigurationError
from attnwatch.layers import LayerStatistic
from attnwatch.recorder.history import AttentionHistory
from attnwatch.recorder.lazy import Observation, ObservedLayers, ObservedValues


class HistoryBuffer:
    """Bounded store of observations.

    The newest quarter of `max_observations` is always complete. Older observations are thinned to every second,
    fourth, …, so that the rest is spread evenly over the run, however long it gets.

    Args:
        sites: names of the model's sites.
        statistics: names of the recorded statistics. Others in a loaded state are kept.
        max_observations: maximum number of observations to keep.
    """

    def __init__(self, sites: Sequence[str], statistics: Sequence[str], max_observations: int):
        self.sites = tuple(sites)
        self._recorded = tuple(statistics)
        self._statistics = tuple(statistics)
        self._layer_statistics = tuple(LayerStatistic.registry)
        self._max = max_observations
        self._stride = 1
        self._count = 0
        self._numbered: list[tuple[int, Observation]] = []

    @property
    def num_observations(self) -> int:
        """Number of observations that were appended, including those that were thinned out."""
        return self._count

    def append(self, observation: Observation) -> None:
        """Add the newest observation, and discard those at or after its step, in case the run went back."""
        while self._numbered and self._numbered[-1][1].step >= observation.step:
            self._numbered.pop()
        self._numbered.append((self._count, self._with_all_statistics(observation)))
        self._count += 1
        while len(self._numbered) > self._max:
            self._thin()

    def grow(self, sites: Sequence[str]) -> None:
        """Extend the sites. New sites are nan in earlier observations."""
        self._numbered = [
            (number, _observation(each.step, each.values, each.loss, each.layers, self.sites, sites))
            for number, each in self._numbered
        ]
        self.sites = tuple(sites)

    def history(
        self, coverage: Mapping[str, str], latest: Sequence[Observation] = (), *, total_steps: int | None = None
    ) -> AttentionHistory:
        """Return a snapshot that ends with `latest`, without other observations at or after its step."""
        end = latest[0].step if latest else math.inf
        observations = [observation for _, observation in self._numbered if observation.step < end]
        observations += map(self._with_all_statistics, latest)
        # Sites without a call count as one head with nan.
        heads = max((max(observation.values.shape[2], 1) for observation in observations), default=0)
        return AttentionHistory(
            steps=np.array([observation.step for observation in observations], dtype=np.int64),
            sites=self.sites,
            values=ObservedValues(observations, self._statistics, len(self.sites), heads),
            loss=np.array([observation.loss for observation in observations], dtype=np.float64),
            coverage=dict(coverage),
            total_steps=total_steps,
            layers=ObservedLayers(observations, self._layer_statistics, len(self.sites)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers and strings, so that checkpoints load without pickled code."""
        return {
            "sites": list(self.sites),
            "statistics": list(self._statistics),
            "stride": self._stride,
            "count": self._count,
            "numbers": [number for number, _ in self._numbered],
            "steps": [observation.step for _, observation in self._numbered],
            "losses": [observation.loss for _, observation in self._numbered],
            "values": [torch.from_numpy(observation.values) for _, observation in self._numbered],
            "layer_statistics": list(self._layer_statistics),
            "layers": torch.from_numpy(self._layers()),
        }

    def load_state_dict(self, state: dict[str, Any], *, new_sites: Collection[str] = ()) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: result of `state_dict`.
            new_sites: sites that the state may lack.

        Raises:
            ConfigurationError: the state is that of a model with other sites.
        """
        sites = tuple(state["sites"])
        if not set(self.sites) - set(new_sites) <= set(sites) <= set(self.sites):
            raise ConfigurationError(
                f"`state` was recorded at the sites {state['sites']}, but this model has {list(self.sites)}: "
                "resume with the same model and `sites`, or start a new history."
            )
        known = {name: index for index, name in enumerate(state["statistics"])}
        self._statistics = (*self._recorded, *(name for name in known if name not in self._recorded))
        order = [known.get(name) for name in self._statistics]
        names = state.get("layer_statistics", [])  # older versions had none
        recorded = state["layers"].numpy() if names else [()] * len(state["steps"])
        layers = [dict(zip(names, each, strict=True)) for each in recorded]
        self._layer_statistics = tuple(dict.fromkeys((*self._layer_statistics, *names)))
        self._stride, self._count = state["stride"], state["count"]
        self._numbered = [
            (number, _observation(step, _reordered(values.numpy(), order), loss, at, sites, self.sites))
            for number, step, values, loss, at in zip(
                state["numbers"], state["steps"], state["values"], state["losses"], layers, strict=True
            )
        ]

    def _layers(self) -> np.ndarray:
        """Return the layer statistics, float32 [observations, layer statistics, sites]."""
        columns = ObservedLayers([each for _, each in self._numbered], self._layer_statistics, len(self.sites))
        shape = (len(self._numbered), 0, len(self.sites))
        return np.stack(list(columns.values()), axis=1) if columns else np.empty(shape, dtype=np.float32)

    def _with_all_statistics(self, observation: Observation) -> Observation:
        """Return the observation with nan for the statistics that only a loaded state had."""
        missing = len(self._statistics) - len(observation.values)
        if not missing:
            return observation
        values = np.pad(observation.values, ((0, missing), (0, 0), (0, 0)), constant_values=np.nan)
        return replace(observation, values=values)

    def _thin(self) -> None:
        oldest_complete = self._count - self._max // 4
        kept = [
            (number, observation)
            for number, observation in self._numbered
            if number % self._stride == 0 or number >= oldest_complete
        ]
        if len(kept) == len(self._numbered):
            self._stride *= 2
        self._numbered = kept


def _reordered(values: np.ndarray, order: Sequence[int | None]) -> np.ndarray:
    """Return values with the statistics in the current order; nan for those that were not recorded."""
    missing = np.full(values.shape[1:], np.nan, dtype=np.float32)
    return np.stack([missing if index is None else values[index] for index in order])


def _observation(
    step: int,
    values: np.ndarray,
    loss: float,
    layers: Mapping[str, np.ndarray],
    sites: Sequence[str],
    now: Sequence[str],
) -> Observation:
    """Return an observation that was made at `sites` at the present ones; nan at those that were not known then."""
    at_sites = {name: _at_sites(column[None, :, None], sites, now)[0, :, 0] for name, column in layers.items()}
    return Observation(step, _at_sites(values, sites, now), loss, at_sites)


def _at_sites(values: np.ndarray, sites: Sequence[str], now: Sequence[str]) -> np.ndarray:
    """Return values [statistics, sites, heads] at the present sites; nan at those that were not known then."""
    if tuple(sites) == tuple(now):
        return values
    result = np.full((values.shape[0], len(now), values.shape[2]), np.nan, dtype=np.float32)
    for index, site in enumerate(sites):
        result[:, now.index(site)] = values[:, index]
    return result
