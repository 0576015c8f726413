"""Pictures of a history. Needs matplotlib."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from attnwatch.dashboard.heatmaps import MOST_TICKS, Axes, Extend, Figure, heatmap, layers_over_steps, regular_ticks
from attnwatch.dashboard.scalars import over_heads
from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Statistic
from attnwatch.utils.labels import site_labels


def figures(
    history: AttentionHistory,
    marks: Sequence[tuple[int, str]] = (),
    removed: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> dict[str, Figure]:
    """Draw all pictures of a history by tag, for the statistics shown per layer.

    `attention_heads/entropy` shows layer × head at the latest observation, `attention_layers/entropy` layers over time.

    Args:
        history: history with at least one observation.
        marks: (step, label) of each change of the model, drawn as lines in the layers over time.
        removed: numbers of the heads that were removed, by site.
    """
    pictures = {}
    for name, statistic in history.statistics.items():
        if statistic.per_layer:
            pictures[f"attention_heads/{name}"] = _heads(history, statistic, removed)
            pictures[f"attention_layers/{name}"] = _layers(history, statistic, marks)
    return pictures


def _heads(history: AttentionHistory, statistic: Statistic, removed: Mapping[str, Collection[int]]) -> Figure:
    values, title = history[statistic.name][-1], f"{_title(statistic)}, step {history.steps[-1]}"
    figure, axes = heatmap(
        values,
        site_labels(history.sites),
        statistic.chart_range(values),
        title,
        extend=_extend(statistic),
        is_logarithmic=statistic.chart_is_logarithmic,
        removed=_are_removed(history, removed),
    )
    axes.set_xlabel("head", fontsize=13)
    axes.set_xticks(regular_ticks(values.shape[1], MOST_TICKS))
    return figure


def layers_figure(history: AttentionHistory, name: str) -> Figure:
    """Draw the layers of a statistic, or of a layer statistic, over the steps.

    Raises:
        KeyError: the history has no such statistic.
    """
    if name in history.statistics:
        return _layers(history, history.statistics[name], ())
    labels = site_labels(history.sites)
    return layers_over_steps(history[name], history.steps.tolist(), name.replace("_", " "), labels=labels)


def _layers(history: AttentionHistory, statistic: Statistic, marks: Sequence[tuple[int, str]]) -> Figure:
    """Draw the mean over heads (the maximum, for maxima) at every observed step."""
    values, labels = over_heads(history, statistic), site_labels(history.sites)
    figure = layers_over_steps(
        values,
        history.steps.tolist(),
        _title(statistic),
        labels=labels,
        limits=statistic.chart_range(values),
        extend=_extend(statistic),
        is_logarithmic=statistic.chart_is_logarithmic,
    )
    for step, label in marks:
        _mark(figure.axes[0], int(np.searchsorted(history.steps, step)), len(history), label)
    return figure


def _are_removed(history: AttentionHistory, removed: Mapping[str, Collection[int]]) -> np.ndarray:
    """Return a mask of the removed heads, bool [sites, heads]."""
    heads = next(iter(history.values.values())).shape[-1]
    return np.array([[head in removed.get(site, ()) for head in range(heads)] for site in history.sites])


def _extend(statistic: Statistic) -> Extend:
    """Return the ends of the colour scale beyond which a statistic may have values."""
    if statistic.chart_limits is None:
        return "neither"
    return "both" if statistic.low is None else "max"


def _mark(axes: Axes, column: int, num_columns: int, label: str) -> None:
    """Draw a line before a column, unless it is the first."""
    if 0 < column < num_columns:
        axes.axvline(column - 0.5, color="white", linewidth=1.5, linestyle="--")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.8}
        place = axes.get_xaxis_transform()  # steps, and the height from 0 to 1
        axes.text(column - 0.5, 0.98, label, transform=place, rotation=90, fontsize=9, va="top", ha="right", bbox=box)


def _title(statistic: Statistic) -> str:
    unit = f" [{statistic.unit}]" if statistic.unit else ""
    return f"{statistic.name.replace('_', ' ')}{unit}"
