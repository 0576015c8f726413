"""Heatmaps of layers. Needs matplotlib; draws without touching pyplot's global state.

Dashboards show pictures small, so each holds one statistic in letters that stay readable.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from attnwatch.utils.extras import extra_needed
from attnwatch.utils.labels import evenly_spaced

with extra_needed("tensorboard", "drawing"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

NOT_OBSERVED = "0.85"  # light grey
MOST_TICKS = 12
_MOST_STEP_TICKS = 5
Colours = Literal["viridis", "RdBu"]


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as an image, uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def heatmap(
    values: np.ndarray, labels: Sequence[str], limits: tuple[float, float], title: str, *, colours: Colours = "viridis"
) -> tuple[Figure, Axes]:
    """Draw a heatmap with the layers downwards.

    Args:
        values: [layers, columns]; nan is grey.
        labels: of the layers.
        limits: smallest and largest number of the colour scale.
        title: above the picture.
        colours: matplotlib's name of the colour scale.
    """
    height = min(1.6 + 0.28 * len(labels), 6.5)
    figure = Figure(figsize=(5.6, max(height, 3.0)), layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.set_facecolor(NOT_OBSERVED)
    low, high = limits
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high
    )
    figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=12)
    ticks = evenly_spaced(len(labels), MOST_TICKS)
    axes.set_yticks(ticks, [labels[index].removeprefix("layer_") for index in ticks])
    axes.set_ylabel("layer", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    return figure, axes


def layers_over_steps(
    values: np.ndarray,
    steps: Sequence[int],
    title: str,
    *,
    labels: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    colours: Colours = "viridis",
) -> Figure:
    """Draw a number of each layer over the steps.

    Args:
        values: [steps, layers]; nan is grey.
        steps: of the rows.
        title: above the picture.
        labels: of the layers; None means their numbers.
        limits: of the colour scale; None means those of the values and 0, which stands for nothing.
        colours: see `heatmap`.
    """
    if limits is None:
        known = values[np.isfinite(values)]
        limits = (min(known.min(initial=0.0), 0.0), max(known.max(initial=0.0), 0.05))
    labels = list(map(str, range(values.shape[1]))) if labels is None else labels
    figure, axes = heatmap(values.T, labels, limits, title, colours=colours)
    ticks = evenly_spaced(len(steps), _MOST_STEP_TICKS)
    axes.set_xlabel("step", fontsize=13)
    axes.set_xticks(ticks, [str(steps[index]) for index in ticks])
    return figure
