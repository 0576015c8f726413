"""Pictures of a history. Needs matplotlib; draws without touching pyplot's global state.

Dashboards show pictures small, so each holds one statistic in letters that stay readable.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attnwatch.dashboard.scalars import evenly_spaced, over_heads, site_labels
from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Statistic

NOT_OBSERVED = "0.85"  # light grey
_MOST_TICKS = 12


def figures(history: AttentionHistory, marks: Sequence[tuple[int, str]] = ()) -> dict[str, Figure]:
    """All pictures of a history by tag, for the statistics that are shown per layer.

    `attention_heads/entropy` has layer × head at the latest observation, `attention_layers/entropy` layers over time.

    Args:
        marks: (step, words) of what has changed in the model from that step on: lines in the layers over time.
    """
    pictures = {}
    for name, statistic in history.statistics.items():
        if statistic.per_layer:
            pictures[f"attention_heads/{name}"] = _heads(history, statistic)
            pictures[f"attention_layers/{name}"] = _layers(history, statistic, marks)
    return pictures


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image: uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _heads(history: AttentionHistory, statistic: Statistic) -> Figure:
    values = history[statistic.name][-1]
    figure, axes = _heatmap(values, statistic, history)
    axes.set_xlabel("head")
    axes.set_xticks(evenly_spaced(values.shape[1], _MOST_TICKS))
    axes.set_title(f"{_title(statistic)}, step {history.steps[-1]}")
    return figure


def _layers(history: AttentionHistory, statistic: Statistic, marks: Sequence[tuple[int, str]]) -> Figure:
    """The mean over heads (for maxima, the maximum) at every observed step."""
    figure, axes = _heatmap(over_heads(history, statistic).T, statistic, history)
    _name_steps(axes, history.steps)
    axes.set_title(_title(statistic))
    for step, words in marks:
        _mark(axes, int(np.searchsorted(history.steps, step)), len(history), words)
    return figure


def _mark(axes: Axes, column: int, num_columns: int, words: str) -> None:
    """A line before a column, of which there must be one."""
    if 0 < column < num_columns:
        axes.axvline(column - 0.5, color="white", linewidth=1.5, linestyle="--")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.8}
        place = axes.get_xaxis_transform()  # steps, and the height from 0 to 1
        axes.text(column - 0.5, 0.98, words, transform=place, rotation=90, fontsize=9, va="top", ha="right", bbox=box)


def layers_over_steps(values: np.ndarray, steps: Sequence[int], title: str) -> Figure:
    """Numbers of layers, of which 0 is nothing, at every step.

    Args:
        values: [steps, layers], nan where there is none.
    """
    known = values[np.isfinite(values)]
    limits = (min(known.min(initial=0.0), 0.0), max(known.max(initial=0.0), 0.05))
    figure, axes = heatmap(values.T, [str(layer) for layer in range(values.shape[1])], limits)
    _name_steps(axes, steps)
    axes.set_title(title)
    return figure


def heatmap(values: np.ndarray, labels: Sequence[str], limits: tuple[float, float]) -> tuple[Figure, Axes]:
    """Layers downwards; grey where there is no number."""
    height = min(1.6 + 0.28 * len(labels), 6.5)
    figure = Figure(figsize=(5.6, max(height, 3.0)), layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.set_facecolor(NOT_OBSERVED)
    low, high = limits
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high
    )
    figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=12)
    ticks = evenly_spaced(len(labels), _MOST_TICKS)
    axes.set_yticks(ticks, [labels[index] for index in ticks])
    axes.set_ylabel("layer", fontsize=13)
    axes.xaxis.label.set_size(13)
    axes.title.set_size(14)
    axes.tick_params(labelsize=12)
    return figure, axes


def _heatmap(values: np.ndarray, statistic: Statistic, history: AttentionHistory) -> tuple[Figure, Axes]:
    labels = [label.removeprefix("layer_") for label in site_labels(history.sites)]
    return heatmap(values, labels, statistic.chart_range(values))


def _name_steps(axes: Axes, steps: Sequence[int]) -> None:
    ticks = evenly_spaced(len(steps), 5)
    axes.set_xlabel("step")
    axes.set_xticks(ticks, [str(steps[index]) for index in ticks])


def _title(statistic: Statistic) -> str:
    unit = f" [{statistic.unit}]" if statistic.unit else ""
    return f"{statistic.name.replace('_', ' ')}{unit}"
