"""Detection of layers that differ from the others."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# A layer is odd if it is more than _FAR robust standard deviations, and _SHARE_OF_SCALE of the scale, off the median.
_FEWEST_LAYERS, _FAR, _SHARE_OF_SCALE = 4, 5.0, 0.1
_STANDARD_DEVIATIONS_PER_MAD = 1.4826


class OddLayer(NamedTuple):
    """Layer whose value is far from those of the others.

    Attributes:
        site: index of the layer.
        value: value of the layer.
        median: median of all layers.
        distance: distance of `value` from `median`, as a multiple of the distance at which a layer counts as odd.
    """

    site: int
    value: float
    median: float
    distance: float


def odd_layers(values: np.ndarray, chart_range: Callable[[np.ndarray], tuple[float, float]]) -> list[OddLayer]:
    """Return the layers whose values are far from the median of all; none if there are fewer than four layers.

    Args:
        values: one value per layer, [sites]; nan where nothing was observed.
        chart_range: function that returns the ends of the colour scale for the values.

    Example:
        >>> odd_layers(np.array([0.5, 0.51, 0.49, 0.5, 0.9]), lambda values: (0.0, 1.0))[0].site
        4
    """
    known = values[np.isfinite(values)]
    if len(known) < _FEWEST_LAYERS:
        return []
    median = float(np.median(known))
    spread = _STANDARD_DEVIATIONS_PER_MAD * float(np.median(np.abs(known - median)))
    low, high = chart_range(values)
    far = max(_FAR * spread, _SHARE_OF_SCALE * (high - low), np.finfo(np.float32).tiny)
    distances = np.abs(values - median) / far
    return [
        OddLayer(int(site), float(values[site]), median, float(distances[site]))
        for site in np.flatnonzero(distances > 1)
    ]
