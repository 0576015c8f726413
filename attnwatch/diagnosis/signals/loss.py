"""Signals of the loss."""

import numpy as np

from attnwatch.diagnosis.signals.base import Signal, number_at_ends
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.reductions import nan_mean, nan_median, nan_min, second_differences

_MIN_SHARE_OF_LOSS = 0.75
# A loss clearly falls if at most this share of it is left, or if it falls by at least this many standard errors.
_MOST_OF_LOSS, _CLEAR_TREND = 0.5, 15.0


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
    second = second_differences(logs)
    return float(np.sqrt(nan_median(np.where(np.isfinite(second), second, np.nan) ** 2) / 6) + 1e-5)


def clearly_falls(history: AttentionHistory) -> bool:
    """Return whether the loss falls by far more than its noise."""
    number = number_at_ends(history)
    with np.errstate(all="ignore"):
        start, now = nan_mean(history.loss[:number]), nan_mean(history.loss[-number:])
        return bool(now <= _MOST_OF_LOSS * start or loss_trend(history) >= _CLEAR_TREND)


def _log_of_errors(errors: float) -> float:
    """Return sign(t) · log(1 + |t|)."""
    return float(np.sign(errors) * np.log1p(abs(errors)))


def _recent_loss(history: AttentionHistory) -> np.ndarray:
    """Return the loss in the second half; nan if too little of it was recorded."""
    loss = history.loss[len(history) // 2 :]
    return loss if np.isfinite(loss).mean() >= _MIN_SHARE_OF_LOSS else np.full_like(loss, np.nan)


LOSS = (
    Signal(
        "loss_trend",
        loss_trend,
        _log_of_errors,
        title="fall of the loss (log of standard errors)",
        below="the loss does not fall",
        shown="its fall divided by the standard error is {:.2g}",
        source="loss",
    ),
    Signal(
        "loss_noise",
        loss_noise,
        np.log10,
        title="noise of the loss (log10)",
        below="the loss hardly varies",
        shown="by {:.2%} from one observation to the next",
        source="loss",
        of_batches=True,
    ),
)
