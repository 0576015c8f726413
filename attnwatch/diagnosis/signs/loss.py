"""Signs in the loss."""

import numpy as np

from attnwatch.diagnosis.course import Curve, RunCourse
from attnwatch.diagnosis.signs.base import sign
from attnwatch.utils.reductions import second_differences

# A uniform guess over a million classes has 13.8.
_MOST_UNIFORM = 14.0
_CLEARLY = 4.0  # standard errors
_NEXT_TO_NOTHING, _FLAT, _SLOW, _LITTLE_LEFT = 0.01, 0.03, 0.12, 0.1
_JUMP = 3.0  # times the first loss


@sign
def loss_flat(run: RunCourse) -> str | None:
    """The loss has not changed since the first observation."""
    loss = run.loss
    if loss is None:
        return None
    is_within_noise = abs(_errors(loss)) < _CLEARLY and abs(_fall(loss)) < max(_FLAT, 2 * _noise(loss))
    has_jumped = loss.now[0] > _JUMP * abs(loss.values[0, 0])  # at once, so that the jump counts as noise
    if has_jumped or not (is_within_noise or abs(_fall(loss)) < _NEXT_TO_NOTHING):
        return None
    return f"the loss is flat from the start ({_span(loss)})"


@sign
def loss_creeps(run: RunCourse) -> str | None:
    """The loss falls clearly, but only a little."""
    loss = run.loss
    is_clear = loss is not None and _errors(loss) <= -_CLEARLY and not _is_flat_late(loss)
    if loss is None or not (is_clear and _NEXT_TO_NOTHING <= _fall(loss) < _SLOW):
        return None
    return f"the loss falls slowly ({_span(loss)})"


@sign
def loss_falls(run: RunCourse) -> str | None:
    """The loss falls as in a run that learns."""
    loss = run.loss
    if loss is None or _errors(loss) > -_CLEARLY or _fall(loss) < _SLOW:
        return None
    return f"the loss falls ({_span(loss)})"


@sign
def loss_falls_late(run: RunCourse) -> str | None:
    """The loss still falls in the second half."""
    loss = run.loss
    if loss is None:
        return None
    late = loss.since(len(loss.values) // 2)
    if late.change[0] > -_CLEARLY:
        return None
    return f"the loss still falls in the second half ({_number(late.start[0])} → {_number(loss.now[0])})"


@sign
def loss_stuck(run: RunCourse) -> str | None:
    """The loss fell at first and then stayed where it was."""
    loss = run.loss
    if loss is None or not _is_flat_late(loss):
        return None
    low, begin = loss.smooth[:, 0].min(), loss.start[0]
    if begin - low < max(3 * loss.noise[0], _FLAT * abs(begin)) or loss.now[0] < _LITTLE_LEFT * begin:
        return None
    reached = begin - 0.9 * (begin - loss.now[0])
    step = loss.steps[int(np.argmax(loss.smooth[:, 0] <= reached))]
    return f"the loss fell to {_number(loss.now[0])} by step {step} and has stayed there"


@sign
def loss_rebounds(run: RunCourse) -> str | None:
    """The loss fell and has risen again."""
    loss = run.loss
    if loss is None:
        return None
    smooth = loss.smooth[:, 0]
    lowest = int(smooth.argmin())
    risen = loss.now[0] - smooth[lowest]
    has_fallen = loss.start[0] - smooth[lowest] > 3 * loss.noise[0]
    if not has_fallen or risen < max(3 * loss.noise[0] / np.sqrt(3), 0.1 * abs(smooth[lowest])):
        return None
    step = loss.steps[lowest]
    return f"the loss was lowest ({_number(smooth[lowest])}) near step {step} and has risen to {_number(loss.now[0])}"


@sign
def loss_above_start(run: RunCourse) -> str | None:
    """The loss is or was above its first value."""
    loss = run.loss
    if loss is None or loss.start[0] <= 0:
        return None
    begin = loss.values[:2, 0].mean()
    worst = int(loss.smooth[:, 0].argmax())
    highest = loss.smooth[worst, 0]
    if highest - begin < max(3 * loss.noise[0], 0.15 * begin) or worst == 0:
        return None
    return f"the loss rose from {_number(begin)} to {_number(highest)} near step {loss.steps[worst]}"


@sign
def loss_explodes(run: RunCourse) -> str | None:
    """The loss reached many times its first value."""
    loss = run.loss
    if loss is None or loss.start[0] <= 0 or loss.values.max() < 3 * loss.start[0]:
        return None
    return f"the loss reached {_number(loss.values.max())}, {loss.values.max() / loss.start[0]:.1f} times the first"


@sign
def loss_nearly_gone(run: RunCourse) -> str | None:
    """The loss has fallen to almost nothing."""
    loss = run.loss
    if loss is None or loss.start[0] <= 0 or loss.now[0] > _LITTLE_LEFT * loss.start[0]:
        return None
    step = loss.steps[int(np.argmax(loss.smooth[:, 0] < _LITTLE_LEFT * loss.start[0]))]
    return f"the loss falls far and fast ({_span(loss)}; below a tenth of the first near step {step})"


@sign
def loss_smooth(run: RunCourse) -> str | None:
    """The loss has less noise than different batches cause."""
    loss = run.loss
    if loss is None or _fall(loss) < 0.4 or not _log_noise(loss) < 0.01:
        return None
    return f"the loss falls without noise ({_log_noise(loss):.2%} from one observation to the next)"


@sign
def loss_noisy(run: RunCourse) -> str | None:
    """The loss has the noise of different batches."""
    loss = run.loss
    if loss is None or not _log_noise(loss) > 0.05:
        return None
    return f"the loss varies by {_log_noise(loss):.0%} from one observation to the next"


@sign
def loss_comes_again(run: RunCourse) -> str | None:
    """The noise of the loss is periodic, as when a few batches are used in turn."""
    loss = run.loss
    if loss is None or len(loss.values) < 40 or np.ptp(np.diff(loss.steps)) > 0:
        return None
    beside_trend = loss.values[4:-4, 0] - np.lib.stride_tricks.sliding_window_view(loss.values[:, 0], 9).mean(-1)
    likeness = {lag: _correlation(beside_trend[lag:], beside_trend[:-lag]) for lag in range(1, 9)}
    most = max(likeness.values())
    lag = next(lag for lag, value in likeness.items() if value > most - 0.02)  # multiples of a period are as alike
    if lag == 1 or likeness[lag] < 0.7 or likeness[1] > 0.5:
        return None
    return f"the noise of the loss repeats every {lag * int(loss.steps[1] - loss.steps[0])} steps"


@sign
def loss_drops_at_once(run: RunCourse) -> str | None:
    """Most of the fall happened within the first observations."""
    loss = run.loss
    if loss is None or len(loss.values) < 20 or loss.start[0] <= 0:
        return None
    soon = loss.values[2:5, 0].mean()
    if soon > 0.7 * loss.start[0]:
        return None
    return f"the loss fell from {_number(loss.start[0])} to {_number(soon)} by step {loss.steps[4]}"


@sign
def loss_above_any_guess(run: RunCourse) -> str | None:
    """The first loss is above that of a uniform guess over a million classes."""
    loss = run.loss
    if loss is None or loss.start[0] < _MOST_UNIFORM:
        return None
    return f"the first loss of {_number(loss.start[0])} is above that of a uniform guess over a million classes (13.8)"


@sign
def loss_lost(run: RunCourse) -> str | None:
    """The loss is nan or infinite."""
    loss, steps = run.evidence.history.loss, run.evidence.history.steps
    lost = ~np.isfinite(loss)
    if not len(loss) or not lost[-1] or not np.isfinite(loss).any():
        return None
    since = int(np.flatnonzero(~lost)[-1]) + 1
    return f"the loss has not been finite since step {steps[since]}"


@sign
def loss_never_finite(run: RunCourse) -> str | None:
    """No loss was finite, or none was recorded."""
    loss = run.evidence.history.loss
    if not len(loss) or np.isfinite(loss).any():
        return None
    return "no loss was finite, or none was recorded"


@sign
def loss_gone_at_once(run: RunCourse) -> str | None:
    """The loss falls to almost nothing within the first tenth of the run."""
    loss = run.loss
    if loss is None or loss.start[0] < 0:
        return None
    soon = max(2, len(loss.values) // 10)
    if loss.values[soon, 0] > 0.1 * max(loss.start[0], 0.1):
        return None
    return f"the loss is already {_number(loss.values[soon, 0])} at step {loss.steps[soon]}"


@sign
def loss_negative(run: RunCourse) -> str | None:
    """The loss is below zero and falls."""
    loss = run.loss
    if loss is None or loss.now[0] >= 0 or _errors(loss) > -_CLEARLY:
        return None
    return f"the loss is below 0 and keeps falling ({_span(loss)})"


@sign
def loss_unsteady(run: RunCourse) -> str | None:
    """The loss has spikes."""
    loss = run.loss
    if loss is None:
        return None
    second = np.abs(second_differences(loss.values[:, 0]))
    usual = max(np.median(second), 1e-3 * abs(loss.start[0]))  # there may be no noise at all
    if not second.max() > 12 * usual:
        return None
    step = loss.steps[int(second.argmax()) + 1]
    return f"the loss has spikes (near step {step}, {second.max() / usual:.0f} times its usual change)"


def _errors(loss: Curve) -> float:
    return float(loss.change[0])


def _fall(loss: Curve) -> float:
    """Return the fall since the start, relative to it."""
    begin = loss.values[:2, 0].mean()
    return float((begin - loss.now[0]) / max(abs(begin), 1e-12))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0


def _noise(loss: Curve) -> float:
    """Return the noise of the mean over a tenth, relative to the first loss."""
    return float(loss.noise[0] / max(abs(loss.start[0]), 1e-12))


def _log_noise(loss: Curve) -> float:
    """Return the noise of the log of the loss in the second half; nan if the loss is not always above 0."""
    late = loss.values[len(loss.values) // 2 :, 0]
    if (late <= 0).any():
        return float("nan")
    return float(np.sqrt(np.median(second_differences(np.log(late)) ** 2) / 6))


def _is_flat_late(loss: Curve) -> bool:
    """Return whether the loss has stopped falling in the second half."""
    return bool(loss.since(len(loss.values) // 2).change[0] > -_CLEARLY)


def _span(loss: Curve) -> str:
    return f"{_number(loss.start[0])} → {_number(loss.now[0])}"


def _number(value: float) -> str:
    return f"{value:.3g}"
