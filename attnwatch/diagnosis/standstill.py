"""Whether attention changes: each window of observations, its first half against its second."""

from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.evidence import Evidence
from attnwatch.utils.reductions import nan_max, nan_mean

# So many windows are computed at once: their observations fit into a cache.
_AT_ONCE = 32


@dataclass(frozen=True)
class Changes:
    """Of windows that end with an observation each: [windows, sites].

    Attributes:
        chi2: squared drift of the heads' normalized entropy in units of its standard error, mean over the heads.
        drift: largest drift of a head.
    """

    chi2: np.ndarray
    drift: np.ndarray


def changes(evidence: Evidence, window: int, *, first: int = 0) -> Changes:
    """Of the windows of so many observations, from the one that begins with the observation `first` on."""
    history = evidence.history
    key, begins = ("changes", window), range(first, len(history) - window + 1)
    known = {begin: history.memo(begin + window - 1).get(key) for begin in begins}
    missing = [begin for begin, change in known.items() if change is None]
    while missing:
        begin, number = missing[0], min(_AT_ONCE, missing[-1] - missing[0] + 1)
        seen = history.at(slice(begin, begin + number + window - 1))["normalized_entropy"]
        for place, change in enumerate(_of_windows(seen, window), start=begin):
            known[place] = history.memo(place + window - 1)[key] = change
        missing = [place for place in missing if place >= begin + number]
    chi2, drift = np.moveaxis(np.array(list(known.values())), 1, 0)
    return Changes(evidence.of_sites(chi2), evidence.of_sites(drift))


def _of_windows(entropy: np.ndarray, window: int) -> np.ndarray:
    """(chi2, drift) of all windows of [observations, sites, heads]: [windows, 2, sites]."""
    first, second, error = halves(entropy, np.arange(window, len(entropy) + 1), window)
    drift = second - first
    chi2 = nan_mean(np.square(drift / np.maximum(error, 1e-7)))
    return np.stack([chi2, nan_max(np.abs(drift))], axis=1)


def halves(values: np.ndarray, ends: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of both halves of the windows that end before `ends`, and the standard error of their difference.

    By running sums along the first axis, of the values less their mean, so that nothing is lost where they vary little.
    """
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    centre = nan_mean(np.moveaxis(values, 0, -1))
    known = np.isfinite(values)
    centred = np.where(known, values - centre, 0.0)
    sums = [np.cumsum(np.concatenate([np.zeros_like(each[:1]), each]), axis=0) for each in (known, centred, centred**2)]
    middle = ends - window // 2
    means, variance = [], 0.0
    for begin, end in ((ends - window, middle), (middle, ends)):
        number, total, squares = (running[end] - running[begin] for running in sums)
        mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
        spread = np.maximum(squares - number * mean**2, 0.0) / np.maximum(number - 1, 1)
        length = (end - begin)[0]
        means.append(mean + centre)
        variance = variance + spread / length
    return means[0], means[1], np.sqrt(variance)
