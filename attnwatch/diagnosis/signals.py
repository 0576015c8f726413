"""Signals of a history that predict the outcome of the run: a few dimensionless numbers, the same for all models.

Each signal is declared once; the risk model and its tuning follow from the declaration.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attnwatch.recorder import AttentionHistory, Values
from attnwatch.utils.reductions import nan_max, nan_mean, nan_min

MIN_OBSERVATIONS = 6  # fewer can't show a change
_MAX_OBSERVATIONS = 100
_MAX_AVERAGED = 10
_MAX_HEADS = 1024
_MIN_SHARE_OF_LOSS = 0.75
# A loss clearly falls if at most this share of it is left, or if it falls by at least this many standard errors.
_MOST_OF_LOSS, _CLEAR_TREND = 0.5, 15.0


@dataclass(frozen=True)
class Signal:
    """Declaration of a signal: one number for the run so far.

    Attributes:
        name: name of the signal.
        number: function of a history with at least `MIN_OBSERVATIONS` observations, in a readable unit; nan if unknown.
        scale: function from the number to the input of the risk model; odd or logarithmic, so that all ranges are
            equally wide.
        below, above: meaning of a value below, or above, the range of sound runs; "" for none.
        shown: format string that puts the number into words.
        of_loss: True if the signal comes from the loss, not from attention.
    """

    name: str
    number: Callable[[AttentionHistory], float]
    scale: Callable[[float], float]
    below: str = ""
    above: str = ""
    shown: str = "{:.3g}"
    of_loss: bool = False


def movement(history: AttentionHistory) -> float:
    """Return how far the heads' normalized entropy has moved since the start, in units of its noise."""
    noise_variance = nan_mean(_noise_variance(_some_heads(history, "normalized_entropy")))
    number = _ends(len(history))
    start, now = _heads_at_ends(history, "normalized_entropy", number)
    # Root mean square over heads, without the part that noise alone would cause.
    distance = np.sqrt(np.maximum(nan_mean((now - start) ** 2) - 2 * noise_variance / number, 0.0))
    return float((distance + 1e-5) / (np.sqrt(noise_variance) + 1e-5))


def largest_logit(history: AttentionHistory) -> float:
    """Return the largest attention logit of any head now."""
    _, now = _heads_at_ends(history, "max_logit", _ends(len(history)))
    return float(nan_max(now))


def logit_growth(history: AttentionHistory) -> float:
    """Return the spread of the logits now, relative to the start."""
    number = _ends(len(history))
    totals = history.of_each_observation("total logit_std", _total_logit_std)
    now, start = (each[:, 0].sum() / max(each[:, 1].sum(), 1) for each in (totals[-number:], totals[:number]))
    return float((now + 1e-5) / (start + 1e-5))


def loss_trend(history: AttentionHistory) -> float:
    """Return the fall of the loss in the second half, in standard errors."""
    loss = _recent_loss(history)
    if np.isnan(loss).all():
        return float("nan")
    time = np.arange(len(loss)) - (len(loss) - 1) / 2
    centred = loss - nan_mean(loss)
    slope = float(np.nansum(time * centred) / np.sum(time**2))
    residual = centred - time * slope
    error = np.sqrt(np.nansum(residual**2) / max(len(loss) - 2, 1) / np.sum(time**2))
    return -slope / (float(error) + 1e-9)


def loss_noise(history: AttentionHistory) -> float:
    """Return the noise of log loss from step to step, in the second half; nan if the loss is not positive."""
    loss = _recent_loss(history)
    logs = np.log(loss) if nan_min(loss) > 0 else np.full_like(loss, np.nan)
    second = logs[2:] - 2 * logs[1:-1] + logs[:-2]
    return float(np.sqrt(_median(second**2) / 6) + 1e-5)


def _log_of_errors(errors: float) -> float:
    """Return sign(t) · log(1 + |t|)."""
    return float(np.sign(errors) * np.log1p(abs(errors)))


def _log_of_logit(logit: float) -> float:
    """Return log10 of a logit; small and negative logits count as 0.001."""
    return float(np.log10(max(logit, 1e-3)))


def _recent_loss(history: AttentionHistory) -> np.ndarray:
    """Return the loss in the second half; nan if too little of it was recorded."""
    loss = history.loss[len(history) // 2 :]
    return loss if np.isfinite(loss).mean() >= _MIN_SHARE_OF_LOSS else np.full_like(loss, np.nan)


SIGNALS = (
    Signal(
        "movement",
        movement,
        np.log10,
        below="attention hardly moves",
        shown="its movement since the start is {:.2g} times its noise",
    ),
    Signal(
        "largest_logit",
        largest_logit,
        _log_of_logit,
        below="queries hardly tell keys apart",
        above="attention logits are large",
        shown="the largest logit is {:.3g}",
    ),
    Signal(
        "logit_growth",
        logit_growth,
        np.log10,
        below="attention loses its contrast",
        above="attention logits spread fast",
        shown="the spread of the logits is {:.3g} times its initial value",
    ),
    Signal(
        "loss_trend",
        loss_trend,
        _log_of_errors,
        below="the loss does not fall",
        shown="its fall divided by the standard error is {:.2g}",
        of_loss=True,
    ),
    Signal(
        "loss_noise",
        loss_noise,
        np.log10,
        below="the loss hardly varies",
        shown="by {:.2%} from one observation to the next",
        of_loss=True,
    ),
)


_NOISE_OF_LOSS = [signal.name for signal in SIGNALS].index("loss_noise")


def numbers_of(history: AttentionHistory) -> np.ndarray:
    """Return the signals in readable units, float64 [signals]; nan where unknown."""
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
    """Return the signals as inputs of the risk model, float64 [signals]; nan where unknown."""
    numbers = numbers_of(history)
    with np.errstate(all="ignore"):
        return np.array([signal.scale(number) for signal, number in zip(SIGNALS, numbers, strict=True)])


def evidence_of(history: AttentionHistory) -> np.ndarray:
    """Return `signals_of`, with nan for signals that do not distinguish sound runs from failing ones."""
    return evidence_in(signals_of(history), history)


def evidence_in(signals: np.ndarray, history: AttentionHistory) -> np.ndarray:
    """Return the signals of a history, with nan for those that say nothing about it.

    The noise of a clearly falling loss depends on the size of the batches: there is none if all batches are the same,
    as with tiny data sets.
    """
    signals = signals.copy()
    if len(history) >= MIN_OBSERVATIONS and _clearly_falls(_evenly_spaced(history)):
        signals[_NOISE_OF_LOSS] = np.nan
    return signals


def _clearly_falls(history: AttentionHistory) -> bool:
    number = _ends(len(history))
    with np.errstate(all="ignore"):
        start, now = nan_mean(history.loss[:number]), nan_mean(history.loss[-number:])
        return bool(now <= _MOST_OF_LOSS * start or loss_trend(history) >= _CLEAR_TREND)


def _evenly_spaced(history: AttentionHistory) -> AttentionHistory:
    """Return at most `_MAX_OBSERVATIONS`, evenly spaced in steps, as long histories are thinned at the start."""
    steps = history.steps
    number = min(len(steps), _MAX_OBSERVATIONS)
    if number < MIN_OBSERVATIONS:
        return history
    grid = np.linspace(steps[0], steps[-1], number)
    after = np.searchsorted(steps, grid).clip(1, len(steps) - 1)
    nearest = np.unique(np.where(grid - steps[after - 1] <= steps[after] - grid, after - 1, after))
    return history.at(nearest)


def _heads_at_ends(history: AttentionHistory, statistic: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of a statistic over the first and the last `number` observations, float64 [sites · heads]."""
    ends = (slice(number), slice(len(history) - number, None))
    start, now = (nan_mean(history.at(end)[statistic].reshape(number, -1).astype(np.float64).T) for end in ends)
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


def _ends(number: int) -> int:
    """Return the number of observations that are averaged at each end."""
    return max(2, min(_MAX_AVERAGED, number // 4))


def _noise_variance(entropy: np.ndarray) -> np.ndarray:
    """Return the noise variance of each head from second differences, on which a trend has little effect."""
    second = entropy[2:] - 2 * entropy[1:-1] + entropy[:-2]
    return nan_mean((second**2).T) / 6


def _median(values: np.ndarray) -> float:
    observed = values[np.isfinite(values)]
    return float(np.median(observed)) if observed.size else float("nan")
