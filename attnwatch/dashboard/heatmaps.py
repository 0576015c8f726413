"""Heatmaps of layers. Needs matplotlib; draws without changing pyplot's global state.

Dashboards show small pictures, so each has only one statistic, in large letters.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from attnwatch.utils.extras import extra_needed

with extra_needed("tensorboard", "drawing"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize, SymLogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

NOT_OBSERVED = "0.85"  # light grey
_REMOVED: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.45", "hatch": "/////", "linewidth": 0.0}
MOST_TICKS = 12
_MOST_STEP_TICKS = 5
_LEAST_SHARE = 0.01
_ROUND_NUMBERS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64)
_LOGARITHMIC_TICKS = (0, 1, 3, 10, 30, 100, 300, 1000)
Colours = Literal["viridis", "RdBu"]
Extend = Literal["neither", "max", "both"]


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as an image, uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def heatmap(
    values: np.ndarray,
    labels: Sequence[str],
    limits: tuple[float, float],
    title: str,
    *,
    colours: Colours = "viridis",
    extend: Extend = "neither",
    is_logarithmic: bool = False,
    removed: np.ndarray | None = None,
) -> tuple[Figure, Axes]:
    """Draw a heatmap with one row for each layer.

    Args:
        values: numbers [layers, columns]; nan is grey.
        labels: names of the layers.
        limits: smallest and largest number of the colour scale.
        title: title above the picture.
        colours: matplotlib's name of the colour scale.
        extend: ends of the colour scale beyond which there may be values.
        is_logarithmic: True for colours that are logarithmic above 1.
        removed: mask of the removed cells, which are hatched, bool [layers, columns]; None if there are none.
    """
    removed = np.zeros(values.shape, dtype=bool) if removed is None else removed
    height = min(1.6 + 0.28 * len(labels), 6.5)
    figure = Figure(figsize=(5.6, max(height, 3.0)), layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.set_facecolor(NOT_OBSERVED)
    norm = SymLogNorm(1.0, vmin=limits[0], vmax=limits[1], base=10) if is_logarithmic else Normalize(*_apart(*limits))
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", cmap=colours, norm=norm)
    scale = figure.colorbar(image, ax=axes, pad=0.02, extend=extend, extendfrac=0.03)
    scale.ax.tick_params(labelsize=12)
    if is_logarithmic:
        ticks = [tick for tick in _LOGARITHMIC_TICKS if limits[0] <= tick <= limits[1]]
        scale.set_ticks(ticks, labels=list(map(str, ticks)), minor=False)
        scale.minorticks_off()
    else:
        scale.ax.ticklabel_format(axis="y", useOffset=False)
    _hatch(axes, removed)
    _add_legend(figure, has_unobserved=bool((~np.isfinite(values) & ~removed).any()), has_removed=bool(removed.any()))
    ticks = regular_ticks(len(labels), MOST_TICKS)
    axes.set_yticks(ticks, [labels[index].removeprefix("layer_") for index in ticks])
    axes.set_ylabel("layer", fontsize=13)
    axes.set_title(title, fontsize=14)
    axes.tick_params(labelsize=12)
    return figure, axes


def regular_ticks(number: int, most: int) -> list[int]:
    """Return at most `most` indices below `number`, from 0 on, spaced evenly by a round number.

    Example:
        >>> regular_ticks(128, 12)
        [0, 16, 32, 48, 64, 80, 96, 112]
    """
    least = -(-number // most)
    distances = (round_number * 100**power for power in itertools.count() for round_number in _ROUND_NUMBERS)
    return list(range(0, number, next(distance for distance in distances if distance >= least)))


def _apart(low: float, high: float) -> tuple[float, float]:
    """Return limits far enough apart that the numbers on a colour scale differ."""
    least = _LEAST_SHARE * max(abs(low), abs(high), _LEAST_SHARE)
    return (low, high) if high - low >= least else (low, low + least)


def _hatch(axes: Axes, where: np.ndarray) -> None:
    """Hatch the cells of a heatmap where the array is True, with as few pieces per row as possible."""
    for row, cells in enumerate(where):
        ends = np.flatnonzero(np.diff(np.concatenate([[False], cells, [False]]).astype(int)))
        for begin, end in ends.reshape(-1, 2):
            axes.add_patch(Rectangle((begin - 0.5, row - 0.5), end - begin, 1.0, **_REMOVED))


def _add_legend(figure: Figure, *, has_unobserved: bool, has_removed: bool) -> None:
    """Add a legend below the picture for cells without a number."""
    handles = []
    if has_unobserved:
        handles.append(Patch(facecolor=NOT_OBSERVED, edgecolor="0.45", linewidth=0.5, label="not observed"))
    if has_removed:
        handles.append(Patch(**_REMOVED, label="removed"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=11, frameon=False)


def layers_over_steps(
    values: np.ndarray,
    steps: Sequence[int],
    title: str,
    *,
    labels: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    colours: Colours = "viridis",
    extend: Extend = "neither",
    is_logarithmic: bool = False,
) -> Figure:
    """Draw one number per layer over the steps.

    Args:
        values: numbers [steps, layers]; nan is grey.
        steps: step of each row.
        title: title above the picture.
        labels: names of the layers; None means their numbers.
        limits: ends of the colour scale; None means the range of the values and 0.
        colours, extend, is_logarithmic: see `heatmap`.
    """
    if limits is None:
        known = values[np.isfinite(values)]
        limits = (min(known.min(initial=0.0), 0.0), max(known.max(initial=0.0), 0.05))
    labels = list(map(str, range(values.shape[1]))) if labels is None else labels
    figure, axes = heatmap(
        values.T, labels, limits, title, colours=colours, extend=extend, is_logarithmic=is_logarithmic
    )
    ticks = regular_ticks(len(steps), _MOST_STEP_TICKS)
    axes.set_xlabel("step", fontsize=13)
    axes.set_xticks(ticks, [str(steps[index]) for index in ticks])
    return figure
