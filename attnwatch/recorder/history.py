"""History of a run as plain arrays, saved without pickle."""

import json
import os
import zipfile
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from attnwatch.errors import ConfigurationError
from attnwatch.layers import LayerStatistic
from attnwatch.recorder.lazy import ObservedLayers, ObservedValues, SelectedValues, Values
from attnwatch.statistics import Statistic
from attnwatch.utils.files import UnreadableFileError, parse_json, replaced_file
from attnwatch.utils.messages import counted
from attnwatch.utils.notebooks import as_html

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_FORMAT = 1
_PREFIX = "statistic/"
_LAYER_PREFIX = "layer/"
# 512 observations of 126 layers with 128 heads have 0.4 GB.
_MOST_BYTES = 2**32
_MOST_BYTES_OF_HEADER = 2**28


@dataclass(frozen=True, repr=False)
class AttentionHistory:
    """Statistics of every site and head at every observed step.

    `history["entropy"]` is a float32 array [steps, sites, heads], nan where nothing was observed. Sites with fewer
    heads than others are padded with nan. There is one array for each registered `attnwatch.Statistic`.
    `history["gradient_norm"]` is a float32 array [steps, sites]; there is one for each `attnwatch.LayerStatistic`.

    Attributes:
        steps: ascending global steps, int64 [steps].
        sites: names of the sites.
        values: arrays by name of the statistic.
        loss: training loss at these steps, float64 [steps]; nan if it was not recorded.
        coverage: `"observed"`, or the reason why it is not observed, for each site.
        total_steps: number of steps that the run will have; None if unknown.
        layers: arrays by name of the layer statistic.
    """

    steps: np.ndarray
    sites: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    loss: np.ndarray
    coverage: Mapping[str, str] = field(default_factory=dict)
    total_steps: int | None = None
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def statistics(self) -> dict[str, Statistic]:
        """Registered statistics in this history by name, without those whose plugin is missing."""
        return {name: statistic for name, statistic in Statistic.registry.items() if name in self.values}

    @property
    def layer_statistics(self) -> dict[str, LayerStatistic]:
        """Registered layer statistics in this history by name."""
        return {name: statistic for name, statistic in LayerStatistic.registry.items() if name in self.layers}

    @property
    def num_steps(self) -> int:
        """Number of steps that the observations represent; each represents the steps up to the next one."""
        return num_steps(self.steps)

    @property
    def gap(self) -> int:
        """Median number of steps between two observations; 1 if there is only one."""
        return gap(self.steps)

    def share_over(self, step: int) -> float | None:
        """Return the share of the run that is over when a step was observed, 0 to 1; None if its length is unknown."""
        return None if self.total_steps is None else min(float(step + self.gap) / self.total_steps, 1.0)

    def __getitem__(self, statistic: str) -> np.ndarray:
        for columns in (self.values, self.layers):
            if statistic in columns:
                return columns[statistic]
        known = ", ".join((*self.values, *self.layers))
        raise KeyError(f"{statistic!r} is not in this history; it has: {known}")

    def __repr__(self) -> str:
        span = f", steps {self.steps[0]} to {self.steps[-1]}" if len(self) else ""
        return f"AttentionHistory({counted(len(self), 'observation')}{span}, {counted(len(self.sites), 'site')})"

    def __len__(self) -> int:
        return len(self.steps)

    def until(self, step: int) -> "AttentionHistory":
        """Return the observations up to and including this global step."""
        return self.first(int(np.searchsorted(self.steps, step, side="right")))

    def without_memos(self) -> "AttentionHistory":
        """Return the same history without its memoized results."""
        return replace(self, values=SelectedValues(self.values, slice(None)))

    def first(self, number: int) -> "AttentionHistory":
        """Return the first `number` observations."""
        return self.at(slice(max(number, 0)))

    def at(self, observations: np.ndarray | slice) -> "AttentionHistory":
        """Return some of the observations, by index or bool mask. Arrays are copied when they are read."""
        values, layers = (_at(columns, observations) for columns in (self.values, self.layers))
        return replace(self, steps=self.steps[observations], values=values, loss=self.loss[observations], layers=layers)

    def of_each_observation(self, key: Hashable, function: Callable[[Values], np.ndarray]) -> np.ndarray:
        """Apply a function to the arrays of each observation and stack the results: [steps, …].

        The observations of a recorder memoize the result, so that it is computed once for each.

        Args:
            key: name of the result.
            function: function from arrays [..., sites, heads] by statistic to an array with their leading dimensions.
        """
        if isinstance(self.values, ObservedValues) and not self.values.is_read and len(self):
            return self.values.of_each(key, function)
        return function(self.values)

    def memo(self, index: int) -> dict[Hashable, Any]:
        """Return memoized results for the observations up to this one; an empty dict if they may have changed."""
        if isinstance(self.values, ObservedValues) and not self.values.is_read:
            return self.values.observations[index].memo
        return {}

    def to_pandas(self, *, per: Literal["layer", "head"] = "layer") -> "pd.DataFrame":
        """Return the history as a table, with a row for each step and layer, or for each step, layer and head.

        Args:
            per: "layer" has the loss, the mean of each statistic over the heads (for maxima the maximum) and the layer
                statistics as columns; "head" has the statistics.

        Raises:
            ConfigurationError: `per` is neither "layer" nor "head".
            ImportError: pandas is not installed.
        """
        from attnwatch.recorder.tables import table_of

        return table_of(self, per)

    def plot(self, statistic: str = "normalized_entropy") -> "Figure":
        """Plot a statistic by layer and step.

        Args:
            statistic: name of a statistic or of a layer statistic.

        Returns:
            Matplotlib figure, which a notebook shows.

        Raises:
            KeyError: the history has no such statistic.
            ImportError: matplotlib is not installed.
        """
        from attnwatch.dashboard.figures import layers_figure

        return layers_figure(self, statistic)

    def _repr_html_(self) -> str:
        return as_html(repr(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .npz file. An existing file is replaced once the new one is complete."""
        write_history(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AttentionHistory":
        """Read a file that `save` wrote.

        Raises:
            ConfigurationError: the file is not a saved history, is damaged, or is from a newer version.
            FileNotFoundError: there is no such file.
        """
        return read_history(path)[0]


def write_history(
    history: AttentionHistory, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write the file of `AttentionHistory.save`.

    Args:
        history: history to write.
        path: path of the file. An existing file is replaced once the new one is complete.
        extra: additional entries of the file's header, which are written as JSON.
    """
    header = {"format": _FORMAT, "sites": history.sites, "coverage": dict(history.coverage)}
    header |= {"total_steps": history.total_steps, **(extra or {})}
    arrays: dict[str, Any] = {f"{_PREFIX}{name}": array for name, array in history.values.items()}
    arrays |= {f"{_LAYER_PREFIX}{name}": array for name, array in history.layers.items()}
    with replaced_file(path) as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), steps=history.steps, loss=history.loss, **arrays)


def read_history(path: str | os.PathLike[str]) -> tuple[AttentionHistory, dict[str, Any]]:
    """Return the history in a file that `write_history` wrote, and the header of the file.

    Raises:
        ConfigurationError: the file is not a saved history, is damaged, or is from a newer version.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as stream:
        try:
            return _read(stream)
        except UnreadableFileError as error:
            raise ConfigurationError(f"`path`: {os.fspath(path)!r} {error}.") from error


def _at(columns: Values, observations: np.ndarray | slice) -> Values:
    if isinstance(columns, ObservedValues | ObservedLayers):
        return columns.at(observations)
    return SelectedValues(columns, observations)


def _read(stream: BinaryIO) -> tuple[AttentionHistory, dict[str, Any]]:
    """Read a history and its header, or raise an `UnreadableFileError`."""
    header, arrays = _content(stream)
    if header.get("format") != _FORMAT:
        raise UnreadableFileError(
            f"has format {header.get('format')!r:.20}, this version reads {_FORMAT}; upgrade attnwatch"
        )
    values, layers = (
        {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for prefix in (_PREFIX, _LAYER_PREFIX)
    )
    steps, loss = (arrays.get(name, np.array(None)) for name in ("steps", "loss"))
    sites: Any = header.get("sites")
    coverage: Any = header.get("coverage")
    total_steps = header.get("total_steps")
    what = _what_is_wrong(steps, loss, values, layers, sites, coverage, total_steps)
    if what:
        raise UnreadableFileError(f"is damaged: {what}; use a copy, or record it again")
    unknown = np.full_like(next(iter(values.values())), np.nan)  # for statistics that were not recorded
    values = dict.fromkeys(Statistic.registry, unknown) | values
    layers = dict.fromkeys(LayerStatistic.registry, np.full(unknown.shape[:2], np.nan, dtype=np.float32)) | layers
    history = AttentionHistory(steps.astype(np.int64), tuple(sites), values, loss, coverage, total_steps, layers)
    return history, header


def _content(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the arrays of a file."""
    try:
        with zipfile.ZipFile(stream) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
        size = sum(sizes.values())
        if size > _MOST_BYTES or sizes.get("header.npy", 0) > _MOST_BYTES_OF_HEADER:
            raise UnreadableFileError(f"is not a saved attention history: it would unpack to {size:,} bytes")
        with np.load(stream, allow_pickle=False) as file:
            header = parse_json(str(file["header"]))
            arrays = {name: file[name] for name in file.files}
    except UnreadableFileError:
        raise
    except Exception as error:  # its type depends on which byte is wrong
        raise UnreadableFileError(f"is not a saved attention history ({type(error).__name__}: {error})") from error
    if not isinstance(header, dict):
        raise UnreadableFileError(f"is not a saved attention history: its header is a {type(header).__name__}")
    return header, arrays


def _what_is_wrong(
    steps: np.ndarray,
    loss: np.ndarray,
    values: Mapping[str, np.ndarray],
    layers: Mapping[str, np.ndarray],
    sites: Any,
    coverage: Any,
    total_steps: Any,
) -> str:
    """Return why these can't be a history; empty if they can."""
    if not isinstance(sites, list) or not all(isinstance(site, str) for site in sites) or len({*sites}) < len(sites):
        return "its sites are not a list of distinct names"
    if not isinstance(coverage, dict) or not all(isinstance(reason, str) for reason in coverage.values()):
        return "its coverage is not a mapping from sites to reasons"
    if not (total_steps is None or (type(total_steps) is int and 0 < total_steps <= 2**53)):
        return "its total number of steps is not a positive integer"
    if steps.ndim != 1 or steps.dtype.kind != "i" or (steps < 0).any() or (np.diff(steps) <= 0).any():
        return "its steps are not ascending integers"
    if loss.dtype.kind != "f" or loss.shape != steps.shape:
        return "its loss does not have one number for each step"
    shapes = {array.shape for array in values.values()}
    if len(shapes) != 1 or any(array.dtype.kind != "f" for array in values.values()):
        return "its statistics have different shapes, or are not numbers"
    shape = shapes.pop()
    if len(shape) != 3 or shape[:2] != (len(steps), len(sites)):
        return f"its statistics have the shape {shape}, not [{len(steps)} steps, {len(sites)} sites, heads]"
    if len(steps) and sites and not shape[2]:
        return "its statistics have no heads"
    if any(array.dtype.kind != "f" or array.shape != shape[:2] for array in layers.values()):
        return f"its layer statistics do not have one number for each of {len(steps)} steps and {len(sites)} sites"
    return ""


def num_steps(steps: np.ndarray) -> int:
    """See `AttentionHistory.num_steps`."""
    return int(steps[-1] - steps[0]) + gap(steps) if len(steps) else 0


def gap(steps: np.ndarray) -> int:
    """See `AttentionHistory.gap`."""
    return int(np.median(np.diff(steps))) if len(steps) > 1 else 1
