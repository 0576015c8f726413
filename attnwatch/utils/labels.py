"""Short labels of modules, and choice of evenly spaced ones."""

from collections.abc import Sequence

import numpy as np


def evenly_spaced(number: int, most: int) -> list[int]:
    """Return at most `most` of the indices below `number`, evenly spaced, including the first and the last.

    Example:
        >>> evenly_spaced(10, 4)
        [0, 3, 6, 9]
    """
    if number <= most:
        return list(range(number))
    return sorted({round(index) for index in np.linspace(0, number - 1, most)})


def site_labels(sites: Sequence[str]) -> list[str]:
    """Return the part of each module path that differs from the others; `layer_3` if that part is a number.

    Example:
        >>> site_labels(["model.layers.0.self_attn", "model.layers.1.self_attn"])
        ['layer_0', 'layer_1']
    """
    paths = [site.split(".") for site in sites]
    if len(paths) < 2:
        return list(sites)
    shortest = min(len(path) for path in paths)
    start = min(_num_common(paths), shortest - 1)
    end = min(_num_common([path[::-1] for path in paths]), shortest - start - 1)
    labels = [".".join(path[start : len(path) - end]) for path in paths]
    return [f"layer_{label}" if label.isdecimal() else label for label in labels]


def _num_common(paths: list[list[str]]) -> int:
    """Return the number of leading elements that all paths share."""
    shortest = min(len(path) for path in paths)
    return next((index for index in range(shortest) if len({path[index] for path in paths}) > 1), shortest)
