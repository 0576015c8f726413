"""What of a history foretells how the run ends: a few numbers without unit, the same for all models.

Each is declared once; the risk model and its tuning follow from the declaration.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from attnwatch.recorder import AttentionHistory
from attnwatch.reductions import nan_max, nan_mean, nan_min

# Fewer observations say nothing of a change.
MIN_OBSERVATIONS = 6
_MOST_OBSERVATIONS = 100
_MOST_AVERAGED = 10
_LEAST_RECORDED = 0.75


@dataclass(frozen=True)
class Signal:
    """One number of a run so far.

    Attributes:
        name: of the signal.
        value: of a history of at least `MIN_OBSERVATIONS`; nan where it can't be said.
        below, above: what it means to be below, or above, what sound runs have; "" where it means nothing.
    """

    name: str
    value: Callable[[AttentionHistory], float]
    below: str = ""
    above: str = ""


def movement(history: AttentionHistory) -> float:
    """log10 of how far the heads' normalized entropy has come since the start, in units of its noise."""
    entropy = _entropy(history)
    noise = np.sqrt(_mean(_noise_variance(entropy)))
    return float(np.log10((_distance(entropy) + 1e-5) / (noise + 1e-5)))


def largest_logit(history: AttentionHistory) -> float:
    """log10 of the largest attention logit now, of the head where it is largest."""
    logits = history["max_logit"].reshape(len(history), -1)
    return float(np.log10(max(nan_max(_mean(logits[-_ends(len(logits)) :], 0)), 1e-3)))


def logit_growth(history: AttentionHistory) -> float:
    """log10 of the spread of the logits now, relative to the start."""
    spread = history["logit_std"].reshape(len(history), -1)
    number = _ends(len(spread))
    return float(np.log10((_mean(spread[-number:]) + 1e-5) / (_mean(spread[:number]) + 1e-5)))


def loss_trend(history: AttentionHistory) -> float:
    """Fall of the loss in the second half, in standard errors t, as sign(t) · log(1 + |t|)."""
    slope, error = _slope(_recent_loss(history)[:, None])
    fall = -float(slope[0]) / (float(error[0]) + 1e-9)
    return float(np.sign(fall) * np.log1p(abs(fall)))


def loss_noise(history: AttentionHistory) -> float:
    """log10 of the noise of log loss from step to step, in the second half; nan for a loss that is not above 0."""
    loss = _recent_loss(history)
    logs = np.log(loss) if nan_min(loss) > 0 else np.full_like(loss, np.nan)
    second = logs[2:] - 2 * logs[1:-1] + logs[:-2]
    return float(np.log10(np.sqrt(_median(second**2) / 6) + 1e-5))


def _recent_loss(history: AttentionHistory) -> np.ndarray:
    """Of the second half; nan where too much of it was not recorded for its course to be known."""
    loss = history.loss[len(history) // 2 :]
    return loss if np.isfinite(loss).mean() >= _LEAST_RECORDED else np.full_like(loss, np.nan)


SIGNALS = (
    Signal("movement", movement, below="attention hardly moves"),
    Signal("largest_logit", largest_logit, "queries hardly tell keys apart", "attention logits are large"),
    Signal("logit_growth", logit_growth, "attention loses its contrast", "attention logits spread fast"),
    Signal("loss_trend", loss_trend, below="the loss does not fall"),
    Signal("loss_noise", loss_noise, below="the loss has no noise, as if the same data came again"),
)


def signals_of(history: AttentionHistory) -> np.ndarray:
    """[signals], nan where something can't be said (yet)."""
    history = _evenly_spaced(history)
    if len(history) < MIN_OBSERVATIONS:
        return np.full(len(SIGNALS), np.nan)
    with np.errstate(all="ignore"):
        return np.array([signal.value(history) for signal in SIGNALS])


def _evenly_spaced(history: AttentionHistory) -> AttentionHistory:
    """At most `_MOST_OBSERVATIONS`, evenly spread over the steps: long histories are thinner at their beginning."""
    steps = history.steps
    number = min(len(steps), _MOST_OBSERVATIONS)
    if number < MIN_OBSERVATIONS:
        return history
    grid = np.linspace(steps[0], steps[-1], number)
    after = np.searchsorted(steps, grid).clip(1, len(steps) - 1)
    nearest = np.unique(np.where(grid - steps[after - 1] <= steps[after] - grid, after - 1, after))
    values = {name: array[nearest] for name, array in history.values.items()}
    return replace(history, steps=steps[nearest], values=values, loss=history.loss[nearest])


def _entropy(history: AttentionHistory) -> np.ndarray:
    """Normalized entropy, float64 [observations, sites · heads]."""
    return history["normalized_entropy"].reshape(len(history), -1).astype(np.float64)


def _slope(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each column of [observations, columns]: the least-squares slope, and its standard error."""
    time = (np.arange(len(values)) - (len(values) - 1) / 2)[:, None]
    centred = values - _mean(values, 0)
    slope = _sum(time * centred) / np.sum(time**2)
    residual = centred - time * slope
    return slope, np.sqrt(_sum(residual**2) / max(len(values) - 2, 1) / np.sum(time**2))


def _ends(number: int) -> int:
    """How many observations are averaged at either end."""
    return max(2, min(_MOST_AVERAGED, number // 4))


def _distance(entropy: np.ndarray) -> float:
    """Root mean square over heads of the change since the start, without what noise alone would show."""
    number = _ends(len(entropy))
    change = _mean(entropy[-number:], 0) - _mean(entropy[:number], 0)
    return float(np.sqrt(max(_mean(change**2) - 2 * _mean(_noise_variance(entropy)) / number, 0.0)))


def _noise_variance(entropy: np.ndarray) -> np.ndarray:
    """Of a single observation of each head, from second differences, which hardly see a trend."""
    second = entropy[2:] - 2 * entropy[1:-1] + entropy[:-2]
    return _mean(second**2, 0) / 6


def _mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    return nan_mean(values.reshape(-1)) if axis is None else nan_mean(np.moveaxis(values, axis, -1))


def _median(values: np.ndarray) -> float:
    observed = values[np.isfinite(values)]
    return float(np.median(observed)) if observed.size else float("nan")


def _sum(values: np.ndarray) -> np.ndarray:
    """Over observations; nan for heads that were never observed."""
    return np.where(np.isnan(values).all(0), np.nan, np.nansum(values, 0))
