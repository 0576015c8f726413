"""Statistics of a run as grids: layers over time, and heads at one observation. The page draws the selected ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnwatch.dashboard.scalars import over_heads
from attnwatch.recorder import AttentionHistory
from attnwatch.report.run.charts import INK, Figure, new_figure, plain, step_ticks
from attnwatch.statistics import Statistic
from attnwatch.utils.extras import extra_needed
from attnwatch.utils.labels import evenly_spaced, site_labels

with extra_needed("report", "the run page"):
    from bokeh.models import ColumnDataSource, FixedTicker, LinearColorMapper
    from bokeh.models.annotations import ColorBar, Span
    from bokeh.palettes import Viridis256

# Most values of heads in a page, over all statistics and steps; more would make it larger than 6 MB.
_MOST_NUMBERS = 1_400_000
_MOST_TICKS = 8
_REMOVED, _NOT_OBSERVED, _NOTHING = "#b8623a", "#9aa4b155", "#00000000"
NO_HEAD, OBSERVED, UNOBSERVED, REMOVED = range(4)


@dataclass(frozen=True)
class Grids:
    """Arrays and descriptions with which the page shows the statistics of a run.

    Attributes:
        arrays: `layers/NAME` [observations, sites] of each statistic, and `heads/NAME` [shown, sites, heads] of those
            with heads; `states` [shown, sites, heads], whose values are constants of this module.
        statistics: description of each statistic: its name, title, summary, colour range and group.
        shown: indices of the observations whose heads are shown.
    """

    arrays: Mapping[str, np.ndarray]
    statistics: list[dict[str, Any]]
    shown: list[int]

    @property
    def layers(self) -> dict[str, np.ndarray]:
        """Statistics of the layers by name, [observations, sites]."""
        return {each["name"]: self.arrays[f"layers/{each['name']}"] for each in self.statistics}


def grids_of(history: AttentionHistory, *, share: float = 1.0) -> Grids:
    """Return the statistics of a history, with the heads at as many observations as fit into the page.

    Args:
        share: share of the page that this history may fill.
    """
    attention = list(history.statistics.values())
    num_heads = max((history.values[each.name].shape[2] for each in attention[:1]), default=0)
    per_step = max(len(history.sites) * num_heads * (len(attention) + 1), 1)
    shown = evenly_spaced(len(history), max(int(share * _MOST_NUMBERS) // per_step, 2))
    some = history.at(np.array(shown, dtype=np.int64))
    arrays: dict[str, np.ndarray] = {}
    described: list[dict[str, Any]] = []
    for statistic in attention:
        layers = over_heads(history, statistic)
        if np.isfinite(layers).any():
            arrays[f"layers/{statistic.name}"] = layers
            arrays[f"heads/{statistic.name}"] = some[statistic.name]
            limits = _limits(statistic, some[statistic.name])
            described.append(_described(statistic.name, statistic.summary, statistic.unit, limits, "attention"))
    for of_layers in history.layer_statistics.values():
        layers = history[of_layers.name]
        if np.isfinite(layers).any():
            arrays[f"layers/{of_layers.name}"] = layers
            limits = _ends(layers)
            described.append(_described(of_layers.name, of_layers.summary, of_layers.unit, limits, "layers"))
    if attention:
        arrays["states"] = head_states(history)[shown].astype(np.float32)
    return Grids(arrays, described, shown)


def head_states(history: AttentionHistory) -> np.ndarray:
    """Return the state of each head at each observation, uint8 [observations, sites, heads].

    A head counts as removed if it was observed before and only other heads of its site are observed now.
    """
    seen = np.isfinite(history["nonfinite"]) | np.isfinite(history["normalized_entropy"])
    before = np.logical_or.accumulate(seen, axis=0)
    others = seen.any(-1, keepdims=True)
    states = np.full(seen.shape, UNOBSERVED, dtype=np.uint8)
    states[seen] = OBSERVED
    states[before & ~seen & others] = REMOVED
    states[:, ~seen.any(0)] = NO_HEAD
    return states


def _limits(statistic: Statistic, values: np.ndarray) -> tuple[float, float]:
    """Return the limits of the colour scale; those of the values if a scale for all runs would be logarithmic."""
    if statistic.chart_is_logarithmic and np.isfinite(values).any():
        return _ends(values)
    return statistic.chart_range(values)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest finite value."""
    finite = values[np.isfinite(values)]
    return float(finite.min()), float(finite.max())


def _described(name: str, summary: str, unit: str, limits: tuple[float, float], group: str) -> dict[str, Any]:
    low, high = limits
    return {
        "name": name,
        "title": name.replace("_", " ") + (f" [{unit}]" if unit else ""),
        "summary": summary,
        "low": low,
        "high": high if high > low else low + 1e-6,
        "group": group,
    }


def grid_figures(history: AttentionHistory) -> tuple[Figure, Figure]:
    """Return two empty grids: layers over time, and heads at one observation."""
    num_sites, labels = len(history.sites), site_labels(history.sites)
    num_heads = max((values.shape[2] for values in history.values.values()), default=1)
    height = int(np.clip(90 + 18 * num_sites, 220, 640))
    mapper = LinearColorMapper(palette=Viridis256, low=0, high=1, nan_color=_NOT_OBSERVED, name="layer colours")
    layers = _grid(num_sites, len(history), labels, mapper, height, "layers")
    layers.xaxis.axis_label = "step"
    ticks, texts = step_ticks(history.steps.tolist(), evenly_spaced(len(history), _MOST_TICKS))
    layers.xaxis.ticker, layers.xaxis.major_label_overrides = FixedTicker(ticks=ticks), dict(texts)
    layers.add_layout(Span(location=0, dimension="height", line_color="white", line_width=2, name="position"))
    layers.add_layout(
        ColorBar(color_mapper=mapper, width=10, major_label_text_color=INK, background_fill_alpha=0), "right"
    )
    of_heads = LinearColorMapper(palette=Viridis256, low=0, high=1, nan_color=_NOTHING, name="head colours")
    heads = _grid(num_sites, num_heads, labels, of_heads, height, "heads")
    heads.xaxis.axis_label = "head"
    heads.xaxis.ticker = FixedTicker(ticks=_regular_ticks(num_heads, _MOST_TICKS))
    missing = LinearColorMapper(palette=[_NOTHING, _NOTHING, _NOT_OBSERVED, _REMOVED], low=NO_HEAD, high=REMOVED)
    _add_image(heads, np.zeros((num_sites, num_heads)), missing, "states")
    return layers, heads


def _grid(num_sites: int, width: int, labels: list[str], mapper: LinearColorMapper, height: int, name: str) -> Figure:
    made = new_figure(
        height=height,
        x_range=(-0.5, width - 0.5),
        y_range=(num_sites - 0.5, -0.5),
        name=name,
        title=name,
        tools="",
        y_name="layer",
    )
    made.grid.visible = False
    ticks = _regular_ticks(num_sites, max(height // 24, 2))
    made.yaxis.ticker = FixedTicker(ticks=ticks)
    made.yaxis.major_label_overrides = {index: plain(labels[index].removeprefix("layer_")[:24]) for index in ticks}
    _add_image(made, np.full((num_sites, width), np.nan), mapper, name)
    return made


def _regular_ticks(number: int, most: int) -> list[int]:
    return list(range(0, number, -(-number // most)))


def _add_image(made: Figure, image: np.ndarray, mapper: LinearColorMapper, name: str) -> None:
    num_rows, num_columns = image.shape
    source = ColumnDataSource({"image": [image.astype(np.float32)]}, name=f"{name} source")
    made.image("image", source=source, color_mapper=mapper, x=-0.5, y=-0.5, dw=num_columns, dh=num_rows, level="image")
