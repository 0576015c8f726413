"""Numbers for dashboards, under tags that follow from the declarations of the statistics."""

from collections.abc import Sequence

import numpy as np

from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Reduction, Statistic
from attnwatch.utils.reductions import nan_max, nan_mean

TOTAL_STEPS_TAG = "attention/total_steps"
"""Tag of the number of steps that the run will have, a point wherever it changes; `attnwatch inspect` reads it."""


def run_tags() -> list[str]:
    """Return the tags of the numbers for the whole model."""
    return [statistic.tag for statistic in Statistic.registry.values()]


def run_scalars(history: AttentionHistory, index: int) -> dict[str, float]:
    """One number per statistic for the whole model at the observation `index`: `attention/entropy`, …

    Maxima are maxima over all heads, everything else is the mean. What was not observed is left out.
    """
    seen = history.at(np.array([index]))
    numbers = {
        statistic.tag: _summary(seen[name].reshape(-1), statistic) for name, statistic in seen.statistics.items()
    }
    return _observed(numbers)


def site_scalars(history: AttentionHistory, index: int, *, max_sites: int) -> dict[str, float]:
    """Numbers per site, for the statistics that declare it: `attention_normalized_entropy/layer_0`, …

    Of more than `max_sites` sites so many are shown, evenly spaced from the first to the last: a dashboard with
    thousands of curves shows nothing. All others are in the pictures and in the history.
    """
    labels, seen = site_labels(history.sites), history.at(np.array([index]))
    numbers = {}
    for name, statistic in seen.statistics.items():
        if statistic.per_layer:
            by_site = _summary(seen[name][0], statistic)
            shown = evenly_spaced(len(labels), max_sites)
            numbers |= {f"attention_{name}/{labels[site]}": by_site[site] for site in shown}
    return _observed(numbers)


def over_heads(history: AttentionHistory, statistic: Statistic) -> np.ndarray:
    """[steps, sites]: the mean over heads, for maxima the maximum; nan where nothing was observed."""
    return _summary(history[statistic.name], statistic)


def evenly_spaced(number: int, most: int) -> list[int]:
    """At most `most` of the indices below `number`, evenly spaced, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return sorted({round(index) for index in np.linspace(0, number - 1, most)})


def site_labels(sites: Sequence[str]) -> list[str]:
    """Short names of sites: what differs in their module paths; `layer_3` where that is a number."""
    paths = [site.split(".") for site in sites]
    if len(paths) < 2:
        return list(sites)
    shortest = min(len(path) for path in paths)
    start = min(_common(paths), shortest - 1)
    end = min(_common([path[::-1] for path in paths]), shortest - start - 1)
    labels = [".".join(path[start : len(path) - end]) for path in paths]
    return [f"layer_{label}" if label.isdecimal() else label for label in labels]


def _common(paths: list[list[str]]) -> int:
    """How many leading elements all paths share."""
    shortest = min(len(path) for path in paths)
    return next((index for index in range(shortest) if len({path[index] for path in paths}) > 1), shortest)


def _summary(values: np.ndarray, statistic: Statistic) -> np.ndarray:
    """Over the last axis."""
    return (nan_max if statistic.reduction is Reduction.MAX else nan_mean)(values)


def _observed(numbers: dict[str, np.ndarray]) -> dict[str, float]:
    return {tag: float(number) for tag, number in numbers.items() if not np.isnan(number)}
