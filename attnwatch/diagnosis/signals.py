"""What of a history foretells how the run ends: a few numbers without unit, the same for all models.

Each is declared once; the risk model and its tuning follow from the declaration.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attnwatch.recorder import AttentionHistory, Values
from attnwatch.utils.reductions import nan_max, nan_mean, nan_min

# Fewer observations say nothing of a change.
MIN_OBSERVATIONS = 6
_MOST_OBSERVATIONS = 100
_MOST_AVERAGED = 10
_MOST_HEADS = 1024
_LEAST_RECORDED = 0.75


@dataclass(frozen=True)
class Signal:
    """One number of a run so far.

    Attributes:
        name: of the signal.
        number: of a history of at least `MIN_OBSERVATIONS`, in a unit that people know; nan where it can't be said.
        scale: turns the number into what the risk model reads; odd or logarithmic, so that ranges are of one width.
        below, above: what it means to be below, or above, what sound runs have; "" where it means nothing.
        of_loss: it is of the loss, and not of attention.
    """

    name: str
    number: Callable[[AttentionHistory], float]
    scale: Callable[[float], float]
    below: str = ""
    above: str = ""
    of_loss: bool = False


def movement(history: AttentionHistory) -> float:
    """How far the heads' normalized entropy has come since the start, in units of its noise."""
    noise_variance = _mean(_noise_variance(_some_heads(history, "normalized_entropy")))
    number = _ends(len(history))
    change = _mean(_last(history, "normalized_entropy", number), 0) - _mean(
        _first(history, "normalized_entropy", number), 0
    )
    # Root mean square over heads, without what noise alone would show.
    distance = np.sqrt(max(_mean(change**2) - 2 * noise_variance / number, 0.0))
    return float((distance + 1e-5) / (np.sqrt(noise_variance) + 1e-5))


def largest_logit(history: AttentionHistory) -> float:
    """The largest attention logit now, of the head where it is largest."""
    return float(nan_max(_mean(_last(history, "max_logit", _ends(len(history))), 0)))


def logit_growth(history: AttentionHistory) -> float:
    """Spread of the logits now, relative to the start."""
    number = _ends(len(history))
    totals = history.of_each_observation("total logit_std", _total_logit_std)
    now, start = (each[:, 0].sum() / max(each[:, 1].sum(), 1) for each in (totals[-number:], totals[:number]))
    return float((now + 1e-5) / (start + 1e-5))


def loss_trend(history: AttentionHistory) -> float:
    """Fall of the loss in the second half, in standard errors."""
    slope, error = _slope(_recent_loss(history)[:, None])
    return -float(slope[0]) / (float(error[0]) + 1e-9)


def loss_noise(history: AttentionHistory) -> float:
    """Noise of log loss from step to step, in the second half; nan for a loss that is not above 0."""
    loss = _recent_loss(history)
    logs = np.log(loss) if nan_min(loss) > 0 else np.full_like(loss, np.nan)
    second = logs[2:] - 2 * logs[1:-1] + logs[:-2]
    return float(np.sqrt(_median(second**2) / 6) + 1e-5)


def _log_of_errors(errors: float) -> float:
    """sign(t) · log(1 + |t|)."""
    return float(np.sign(errors) * np.log1p(abs(errors)))


def _log_of_logit(logit: float) -> float:
    """Small and negative ones are the same."""
    return float(np.log10(max(logit, 1e-3)))


def _recent_loss(history: AttentionHistory) -> np.ndarray:
    """Of the second half; nan where too much of it was not recorded for its course to be known."""
    loss = history.loss[len(history) // 2 :]
    return loss if np.isfinite(loss).mean() >= _LEAST_RECORDED else np.full_like(loss, np.nan)


SIGNALS = (
    Signal("movement", movement, np.log10, below="attention hardly moves"),
    Signal(
        "largest_logit", largest_logit, _log_of_logit, "queries hardly tell keys apart", "attention logits are large"
    ),
    Signal("logit_growth", logit_growth, np.log10, "attention loses its contrast", "attention logits spread fast"),
    Signal("loss_trend", loss_trend, _log_of_errors, below="the loss does not fall", of_loss=True),
    Signal(
        "loss_noise",
        loss_noise,
        np.log10,
        below="the loss has no noise, as if the same data came again",
        of_loss=True,
    ),
)


def numbers_of(history: AttentionHistory) -> np.ndarray:
    """[signals], in the units that people know; nan where something can't be said (yet)."""
    memo = history.memo(-1) if len(history) else {}
    if "signals" not in memo:
        memo["signals"] = _numbers(_evenly_spaced(history))
    return memo["signals"]


def _numbers(history: AttentionHistory) -> np.ndarray:
    if len(history) < MIN_OBSERVATIONS:
        return np.full(len(SIGNALS), np.nan)
    with np.errstate(all="ignore"):
        return np.array([signal.number(history) for signal in SIGNALS])


def signals_of(history: AttentionHistory) -> np.ndarray:
    """[signals], as the risk model reads them; nan where something can't be said (yet)."""
    numbers = numbers_of(history)
    with np.errstate(all="ignore"):
        return np.array([signal.scale(number) for signal, number in zip(SIGNALS, numbers, strict=True)])


def _evenly_spaced(history: AttentionHistory) -> AttentionHistory:
    """At most `_MOST_OBSERVATIONS`, evenly spread over the steps: long histories are thinner at their beginning."""
    steps = history.steps
    number = min(len(steps), _MOST_OBSERVATIONS)
    if number < MIN_OBSERVATIONS:
        return history
    grid = np.linspace(steps[0], steps[-1], number)
    after = np.searchsorted(steps, grid).clip(1, len(steps) - 1)
    nearest = np.unique(np.where(grid - steps[after - 1] <= steps[after] - grid, after - 1, after))
    return history.at(nearest)


def _first(history: AttentionHistory, statistic: str, number: int) -> np.ndarray:
    """Of the first observations: float64 [number, sites · heads]."""
    return history.at(slice(number))[statistic].reshape(number, -1).astype(np.float64)


def _last(history: AttentionHistory, statistic: str, number: int) -> np.ndarray:
    """Of the last observations: float64 [number, sites · heads]."""
    return history.at(slice(len(history) - number, None))[statistic].reshape(number, -1).astype(np.float64)


def _some_heads(history: AttentionHistory, statistic: str) -> np.ndarray:
    """Float64 [observations, heads]: of models with very many heads, evenly spread ones."""
    heads = history.at(slice(None))[statistic].reshape(len(history), -1)
    return heads[:, :: -(-heads.shape[1] // _MOST_HEADS)].astype(np.float64)


def _total_logit_std(values: Values) -> np.ndarray:
    """(sum over all heads, their number): [..., 2]."""
    spread = values["logit_std"]
    is_known = np.isfinite(spread)
    total = np.where(is_known, spread, 0).sum((-2, -1), dtype=np.float64)
    return np.stack([total, is_known.sum((-2, -1))], axis=-1)


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
