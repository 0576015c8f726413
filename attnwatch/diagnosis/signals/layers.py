"""Signals of the layers: updates of their weights, and the states that they return."""

import numpy as np

from attnwatch.diagnosis.signals.base import Signal, ends
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.reductions import nan_max, nan_mean, nan_median


def largest_update(history: AttentionHistory) -> float:
    """Return the largest update so far, relative to the weights, in the median layer."""
    return float(nan_max(nan_median(_columns(history, "update_ratio"))))


def token_similarity(history: AttentionHistory) -> float:
    """Return the mean cosine between the tokens of a sequence now, in the layer where they are most alike."""
    _, now = ends(history)
    return float(nan_mean(nan_max(_columns(now, "token_cosine"))))


def _columns(history: AttentionHistory, statistic: str) -> np.ndarray:
    """Return a layer statistic, float64 [observations, sites]; nan if it is missing."""
    if statistic not in history.layers:
        return np.full((len(history), 1), np.nan)
    return history.layers[statistic].astype(np.float64)


LAYERS = (
    Signal(
        "largest_update",
        largest_update,
        np.log10,
        title="largest update (log10)",
        below="the optimizer hardly changes the weights",
        above="the optimizer has changed the weights a lot at once",
        shown="the largest update is {:.2g} times the weights",
        source="layers",
    ),
    Signal(
        "token_similarity",
        token_similarity,
        float,
        title="similarity of the tokens",
        above="the states of the tokens are alike",
        shown="their mean cosine is {:.2f}",
        source="layers",
    ),
)
