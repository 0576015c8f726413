"""What was observed over time, as plain arrays; saved without pickle."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attnwatch.errors import ConfigurationError
from attnwatch.files import replaced_file
from attnwatch.metrics import STATISTICS
from attnwatch.recorder.lazy import ObservedValues, SelectedValues, Values

_FORMAT = 1


@dataclass(frozen=True, repr=False)
class AttentionHistory:
    """Statistics of every site and head at every observed step.

    `history["entropy"]` is a float32 array [steps, sites, heads] (nan: not observed; sites with fewer heads are
    filled up with nan). The names are those of `attnwatch.AttentionStatistics`.

    Attributes:
        steps: int64 [steps], ascending global steps.
        sites: names of the sites.
        values: name of a statistic to its array.
        loss: float64 [steps], training loss at these steps, nan where it was not recorded.
        coverage: for every site `"observed"` or the reason why it is not.
    """

    steps: np.ndarray
    sites: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    loss: np.ndarray
    coverage: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """How many steps the observations stand for, each for those up to the next."""
        return num_steps(self.steps)

    @property
    def gap(self) -> int:
        """Steps between two observations (median); 1 where there is only one."""
        return gap(self.steps)

    def __getitem__(self, statistic: str) -> np.ndarray:
        if statistic not in self.values:
            raise KeyError(f"{statistic!r} is not in this history; it has: {', '.join(self.values)}")
        return self.values[statistic]

    def __repr__(self) -> str:
        span = f", steps {self.steps[0]} to {self.steps[-1]}" if len(self) else ""
        return f"AttentionHistory({len(self)} observations{span}, {len(self.sites)} sites)"

    def __len__(self) -> int:
        return len(self.steps)

    def until(self, step: int) -> "AttentionHistory":
        """What was observed up to this global step, the step itself included."""
        return self.first(int(np.searchsorted(self.steps, step, side="right")))

    def without_memos(self) -> "AttentionHistory":
        """The same, with nothing remembered of what was derived from it."""
        return replace(self, values=SelectedValues(self.values, slice(None)))

    def first(self, number: int) -> "AttentionHistory":
        """The first `number` observations."""
        return self.at(slice(max(number, 0)))

    def at(self, observations: np.ndarray | slice) -> "AttentionHistory":
        """Some of the observations, by index or as a bool mask. Arrays are copied when they are read."""
        is_observed = isinstance(self.values, ObservedValues)
        values = self.values.at(observations) if is_observed else SelectedValues(self.values, observations)
        return replace(self, steps=self.steps[observations], values=values, loss=self.loss[observations])

    def of_each_observation(self, key: Hashable, function: Callable[[Values], np.ndarray]) -> np.ndarray:
        """`function` of the arrays of each observation, stacked: [steps, …].

        A recorder's observations remember the result, so that it is computed once for each.

        Args:
            key: of what is computed.
            function: from arrays [..., sites, heads] by statistic to an array whose leading dimensions are theirs.
        """
        if isinstance(self.values, ObservedValues) and not self.values.is_read and len(self):
            return self.values.of_each(key, function)
        return function(self.values)

    def memo(self, index: int) -> dict[Hashable, Any]:
        """Where to keep what is derived from the observations up to this one; empty where they may have changed."""
        if isinstance(self.values, ObservedValues) and not self.values.is_read:
            return self.values.observations[index].memo
        return {}

    def save(self, path: str | os.PathLike) -> None:
        """Write one .npz file. A file that is already there is replaced only when the new one is complete."""
        header = {"format": _FORMAT, "sites": self.sites, "coverage": dict(self.coverage)}
        arrays = {f"statistic/{name}": array for name, array in self.values.items()}
        with replaced_file(path) as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), steps=self.steps, loss=self.loss, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "AttentionHistory":
        """Read a file that `save` wrote.

        Raises:
            ConfigurationError: the file is not a saved history, or of a newer version.
            FileNotFoundError: there is no such file.
        """
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in file.files}
            version = header["format"]
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigurationError(f"`path`: {os.fspath(path)!r} is not a saved attention history.") from error
        if version != _FORMAT:
            raise ConfigurationError(
                f"`path`: {os.fspath(path)!r} has format {version}, this version reads {_FORMAT}; upgrade attnwatch."
            )
        prefix = "statistic/"
        values = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        try:
            unknown = np.full_like(next(iter(values.values())), np.nan)  # statistics that were not recorded then
            values = dict.fromkeys(STATISTICS, unknown) | values
            history = cls(arrays["steps"], tuple(header["sites"]), values, arrays["loss"], dict(header["coverage"]))
            history._check()
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise ConfigurationError(f"`path`: {os.fspath(path)!r} is damaged: {error!r}.") from error
        return history

    def _check(self) -> None:
        """Raises a `ValueError` where arrays do not belong together."""
        shapes = {array.shape for array in self.values.values()}
        number = len(self.steps)
        if len(shapes) != 1 or self.loss.shape != self.steps.shape or shapes.pop()[:2] != (number, len(self.sites)):
            raise ValueError("its arrays have different lengths")
        if (np.diff(self.steps) <= 0).any():
            raise ValueError("its steps do not ascend")


def num_steps(steps: np.ndarray) -> int:
    """See `AttentionHistory.num_steps`."""
    return int(steps[-1] - steps[0]) + gap(steps) if len(steps) else 0


def gap(steps: np.ndarray) -> int:
    """See `AttentionHistory.gap`."""
    return int(np.median(np.diff(steps))) if len(steps) > 1 else 1
