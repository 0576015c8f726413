"""Scalars for dashboards, with tags derived from the declarations of the statistics."""

import numpy as np

from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import DETAILS, OVERVIEW, Reduction, Statistic
from attnwatch.utils.labels import evenly_spaced, site_labels
from attnwatch.utils.reductions import nan_max, nan_mean

LOSS_TAG, RISK_TAG = f"{OVERVIEW}/loss", f"{OVERVIEW}/risk"
RATE_TAG = f"{DETAILS}/learning_rate"
TOTAL_STEPS_TAG = f"{DETAILS}/total_steps"
"""Tag of the number of steps that the run will have, logged when it changes; `attnwatch judge` reads it."""
_ENTROPY, _ERROR = "normalized_entropy", "normalized_entropy_stderr"
BAND_TAGS = (f"{OVERVIEW}/{_ENTROPY}", f"{DETAILS}/{_ENTROPY}_low", f"{DETAILS}/{_ENTROPY}_high")
"""Tags of the normalized entropy of the model, and of two standard errors below and above it."""


def run_tags() -> list[str]:
    """Return the tags of the numbers for the whole model."""
    return [statistic.tag for statistic in Statistic.registry.values()]


def run_scalars(history: AttentionHistory, index: int) -> dict[str, float]:
    """Return one number per statistic for the whole model at the observation `index`: `attention/normalized_entropy`, …

    Maxima are taken over all heads; all other statistics are means. Statistics that were not observed are left out.
    """
    seen = history.at(np.array([index]))
    numbers = {
        statistic.tag: _summary(seen[name].reshape(-1), statistic) for name, statistic in seen.statistics.items()
    }
    return _observed(numbers)


def extra_scalars(history: AttentionHistory, index: int) -> dict[str, float]:
    """Return the loss, and two standard errors below and above the normalized entropy, at the observation `index`.

    All heads sample the same rows, so the error of the mean over heads is taken to be the mean of their errors, which
    it does not exceed.
    """
    numbers = {LOSS_TAG: np.asarray(history.loss[index])}
    if {_ENTROPY, _ERROR} <= set(history.values):
        entropy, error = (nan_mean(history.at(np.array([index]))[name].reshape(-1)) for name in (_ENTROPY, _ERROR))
        numbers |= dict(zip(BAND_TAGS[1:], (entropy - 2 * error, entropy + 2 * error), strict=True))
    return _observed(numbers)


def site_scalars(history: AttentionHistory, index: int, *, max_sites: int) -> dict[str, float]:
    """Return one number per site, for the statistics that declare it: `layers_normalized_entropy/layer_0`, …

    At most `max_sites` sites are shown, evenly spaced from the first to the last, since thousands of curves make a
    dashboard unreadable. The pictures and the history have all sites.
    """
    labels, seen = site_labels(history.sites), history.at(np.array([index]))
    numbers: dict[str, np.ndarray] = {}
    for name, statistic in seen.statistics.items():
        if statistic.per_layer:
            by_site = _summary(seen[name][0], statistic)
            shown = evenly_spaced(len(labels), max_sites)
            numbers |= {statistic.layer_tag(labels[site]): by_site[site] for site in shown}
    return _observed(numbers)


def layer_scalars(history: AttentionHistory, index: int, *, max_sites: int) -> dict[str, float]:
    """Return the layer statistics per site: `layers_gradient_norm/layer_0`, …

    At most `max_sites` sites are shown; see `site_scalars`.
    """
    labels, seen = site_labels(history.sites), history.at(np.array([index]))
    shown = evenly_spaced(len(labels), max_sites)
    numbers = {
        statistic.tag(labels[site]): seen.layers[name][0, site]
        for name, statistic in seen.layer_statistics.items()
        for site in shown
    }
    return _observed(numbers)


def over_heads(history: AttentionHistory, statistic: Statistic) -> np.ndarray:
    """Return the mean over heads (the maximum, for maxima), [steps, sites]; nan where nothing was observed."""
    key = ("largest" if statistic.reduction is Reduction.MAX else "mean", statistic.name)
    return history.of_each_observation(key, lambda values: _summary(values[statistic.name], statistic))


def _summary(values: np.ndarray, statistic: Statistic) -> np.ndarray:
    """Return the mean over the last axis (the maximum, for maxima)."""
    return (nan_max if statistic.reduction is Reduction.MAX else nan_mean)(values)


def _observed(numbers: dict[str, np.ndarray]) -> dict[str, float]:
    return {tag: float(number) for tag, number in numbers.items() if not np.isnan(number)}
