"""Pictures of a history. Needs matplotlib; draws without touching pyplot's global state."""

import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attnwatch.dashboard.scalars import evenly_spaced, site_labels
from attnwatch.metrics import STATISTICS, Reduction, Statistic
from attnwatch.recorder import AttentionHistory

_NOT_OBSERVED = "0.85"  # light grey
_MOST_TICKS = 16


def heads_figure(history: AttentionHistory) -> Figure:
    """Layer × head heatmaps of the latest observation, one for each statistic that is shown per layer."""
    shown = [statistic for statistic in STATISTICS.values() if statistic.per_layer]
    height = min(2.2 + 0.22 * len(history.sites), 7.0)
    figure = Figure(figsize=(11, 2 * height), layout="constrained", dpi=90)
    for axes, statistic in zip(figure.subplots(-(-len(shown) // 2), 2).flat, shown, strict=False):
        _heatmap(axes, history[statistic.name][-1], statistic)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.set_xticks(evenly_spaced(history["entropy"].shape[2], _MOST_TICKS))
        _label_sites(axes, history)
    figure.suptitle(f"attention by layer and head, step {history.steps[-1]}")
    return figure


def layers_figure(history: AttentionHistory) -> Figure:
    """Layers over time: the mean over heads (the maximum, for maxima) at every observed step."""
    shown = [statistic for statistic in STATISTICS.values() if statistic.per_layer]
    height = min(1.5 + 0.2 * len(history.sites), 5.0)
    figure = Figure(figsize=(11, height * len(shown)), layout="constrained", dpi=90)
    ticks = evenly_spaced(len(history), 8)
    for axes, statistic in zip(figure.subplots(len(shown), 1, squeeze=False).flat, shown, strict=True):
        _heatmap(axes, _over_heads(history[statistic.name], statistic).T, statistic)
        axes.set_xlabel("step")
        axes.set_ylabel("layer")
        axes.set_xticks(ticks, [str(history.steps[index]) for index in ticks])
        _label_sites(axes, history)
    figure.suptitle(f"attention by layer over time, up to step {history.steps[-1]}")
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image: uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _heatmap(axes: Axes, values: np.ndarray, statistic: Statistic) -> None:
    axes.set_facecolor(_NOT_OBSERVED)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        vmin=statistic.low,
        vmax=statistic.high,
    )
    unit = f" [{statistic.unit}]" if statistic.unit else ""
    axes.set_title(f"{statistic.name.replace('_', ' ')}{unit}", fontsize=10)
    axes.figure.colorbar(image, ax=axes, pad=0.01)


def _label_sites(axes: Axes, history: AttentionHistory) -> None:
    labels = [label.removeprefix("layer_") for label in site_labels(history.sites)]
    ticks = evenly_spaced(len(labels), _MOST_TICKS)
    axes.set_yticks(ticks, [labels[index] for index in ticks], fontsize=8)


def _over_heads(values: np.ndarray, statistic: Statistic) -> np.ndarray:
    reduce = np.nanmax if statistic.reduction is Reduction.MAX else np.nanmean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all nan: not observed
        return reduce(values, axis=-1)
