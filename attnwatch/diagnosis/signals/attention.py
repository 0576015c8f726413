"""Signals of attention."""

import numpy as np

from attnwatch.diagnosis.signals.base import Signal, ends, number_at_ends
from attnwatch.recorder import AttentionHistory, Values
from attnwatch.utils.reductions import nan_max, nan_mean, second_differences

_MAX_HEADS = 1024


def movement(history: AttentionHistory) -> float:
    """Return how far the heads' normalized entropy has moved since the start, in units of its noise."""
    noise_variance = nan_mean(_noise_variance(_some_heads(history, "normalized_entropy")))
    number = number_at_ends(history)
    start, now = _heads_at_ends(history, "normalized_entropy")
    # Root mean square over heads, without the part that noise alone would cause.
    distance = np.sqrt(np.maximum(nan_mean((now - start) ** 2) - 2 * noise_variance / number, 0.0))
    return float((distance + 1e-5) / (np.sqrt(noise_variance) + 1e-5))


def largest_logit(history: AttentionHistory) -> float:
    """Return the largest attention logit of any head now."""
    _, now = _heads_at_ends(history, "max_logit")
    return float(nan_max(now))


def logit_growth(history: AttentionHistory) -> float:
    """Return the spread of the logits now, relative to the start."""
    number = number_at_ends(history)
    totals = history.of_each_observation("total logit_std", _total_logit_std)
    now, start = (each[:, 0].sum() / max(each[:, 1].sum(), 1) for each in (totals[-number:], totals[:number]))
    return float((now + 1e-5) / (start + 1e-5))


def _log_of_logit(logit: float) -> float:
    """Return log10 of a logit; small and negative logits count as 0.001."""
    return float(np.log10(max(logit, 1e-3)))


def _heads_at_ends(history: AttentionHistory, statistic: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of a statistic over the first and the last observations, float64 [sites · heads]."""
    start, now = (nan_mean(end[statistic].reshape(len(end), -1).astype(np.float64).T) for end in ends(history))
    return start, now


def _some_heads(history: AttentionHistory, statistic: str) -> np.ndarray:
    """Return a statistic of at most `_MAX_HEADS` heads, evenly spaced over the model, float64 [observations, heads]."""
    heads = history.at(slice(None))[statistic].reshape(len(history), -1)
    return heads[:, :: -(-heads.shape[1] // _MAX_HEADS)].astype(np.float64)


def _total_logit_std(values: Values) -> np.ndarray:
    """Return (sum over all heads, their number), [..., 2]."""
    spread = values["logit_std"]
    is_known = np.isfinite(spread)
    total = np.where(is_known, spread, 0).sum((-2, -1), dtype=np.float64)
    return np.stack([total, is_known.sum((-2, -1))], axis=-1)


def _noise_variance(entropy: np.ndarray) -> np.ndarray:
    """Return the noise variance of each head."""
    return nan_mean((second_differences(entropy) ** 2).T) / 6


ATTENTION = (
    Signal(
        "movement",
        movement,
        np.log10,
        title="movement of attention (log10)",
        below="attention hardly moves",
        shown="its movement since the start is {:.2g} times its noise",
    ),
    Signal(
        "largest_logit",
        largest_logit,
        _log_of_logit,
        title="largest logit (log10)",
        below="queries hardly tell keys apart",
        above="attention logits are large",
        shown="the largest logit is {:.3g}",
    ),
    Signal(
        "logit_growth",
        logit_growth,
        np.log10,
        title="growth of the logits (log10)",
        below="attention loses its contrast",
        above="attention logits spread fast",
        shown="the spread of the logits is {:.3g} times its initial value",
    ),
)
