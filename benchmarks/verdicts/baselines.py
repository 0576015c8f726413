"""Rules on the loss and the gradient norm that people use today. Each gives a number, the higher the worse.

Every threshold is tuned on other tasks and architectures than those that are judged, as attention's is.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from benchmarks.verdicts.runs import Run
from benchmarks.verdicts.scores import Judge, Numbers

Score = Callable[[Run], float]
WORST = 1e9
_SPIKE_WINDOW = 128  # steps


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Return the mean of the last twentieth of the losses at each step; infinite where one of them is not finite."""
    width = max(len(losses) // 20, 1)
    sums = np.cumsum(np.concatenate([np.zeros(1), losses]))
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(ends - width, 0)
    means = (sums[ends] - sums[begins]) / (ends - begins)
    return np.where(np.isfinite(means), means, np.inf)


def loss_level(run: Run) -> float:
    """Return the loss, relative to the first one."""
    smooth = _smooth(run.losses)
    return float(min(smooth[-1] / max(np.mean(run.losses[:5]), 1e-9), WORST)) if np.isfinite(smooth[-1]) else WORST


def loss_slope(run: Run) -> float:
    """Return the least-squares slope of the last half of the losses, relative to the first loss."""
    half = run.losses[len(run.losses) // 2 :]
    if not np.isfinite(half).all():
        return WORST
    slope = np.polyfit(np.linspace(0, 1, len(half)), half, 1)[0]
    return float(slope / max(np.mean(run.losses[:5]), 1e-9))


def plateau(run: Run) -> float:
    """Return the share of the steps since the smoothed loss was last 1% better, as in ReduceLROnPlateau."""
    return _since_best(_smooth(run.losses), 0.01)


def early_stopping(run: Run) -> float:
    """Return the share of the steps since the smoothed loss was last better at all."""
    return _since_best(_smooth(run.losses), 0.0)


def _since_best(smooth: np.ndarray, margin: float) -> float:
    best, at = np.inf, 0
    for step, loss in enumerate(smooth):
        if loss < best * (1 - margin) or (np.isinf(best) and np.isfinite(loss)):
            best, at = loss, step
    return (len(smooth) - 1 - at) / max(len(smooth), 1)


def loss_spike(run: Run) -> float:
    """Return the largest deviation of the loss from the 128 steps before, in their standard deviations (OLMo-core)."""
    return _spike(run.losses)


def gradient_spike(run: Run) -> float:
    """Return the largest deviation of the gradient's norm, as `loss_spike`."""
    return _spike(run.gradient_norms)


def _spike(values: np.ndarray) -> float:
    if not np.isfinite(values).all():
        return WORST
    width = min(_SPIKE_WINDOW, len(values) // 2)
    windows = np.lib.stride_tricks.sliding_window_view(values[:-1], width)
    deviations = (values[width:] - windows.mean(1)) / np.maximum(windows.std(1), 1e-9)
    return float(min(deviations.max(initial=0.0), WORST))


def extrapolation(run: Run) -> float:
    """Return the loss at the end of the budget by a power law of the losses so far, relative to the first loss."""
    smooth = _smooth(run.losses)
    begin = len(smooth) // 5
    seen = smooth[begin:]
    if not np.isfinite(seen).all():
        return WORST
    steps = np.log(np.arange(begin, len(smooth)) + 1.0)
    slope, offset = np.polyfit(steps, np.log(np.maximum(seen, 1e-6)), 1)
    final = np.exp(np.clip(offset + slope * np.log(run.budget), -20, 20))
    return float(final / max(np.mean(run.losses[:5]), 1e-9))


BASELINES: Mapping[str, Score] = {
    "loss level": loss_level,
    "loss slope": loss_slope,
    "plateau": plateau,
    "early stopping": early_stopping,
    "spike of the loss": loss_spike,
    "spike of the gradient": gradient_spike,
    "extrapolated loss": extrapolation,
}


def combined(numbers: Sequence[Mapping[str, np.ndarray]], failed: Mapping[str, bool]) -> Judge:
    """Return the judge that combines all rules: at each look a logistic regression of their ranks.

    The ranks are those among the tuning runs.

    Args:
        numbers: number of each run, by name, at each look, for every rule.
        failed: True for each run, by name, that failed.
    """

    def tuned(others: Sequence[str]) -> Numbers:
        truth = [failed[name] for name in others]
        models = []
        for look in range(len(numbers[0][others[0]])):
            seen = [[way[name][look] for way in numbers] for name in others]
            ranks = QuantileTransformer(n_quantiles=min(100, len(others)), output_distribution="normal")
            model = make_pipeline(ranks, LogisticRegression())
            models.append(model.fit(seen, truth))
        return lambda name: np.array(
            [model.predict_proba([[way[name][look] for way in numbers]])[0, 1] for look, model in enumerate(models)]
        )

    return tuned
