"""Tuning of the risk model on runs whose outcomes are known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from attnwatch.diagnosis.risk import RiskModel
from attnwatch.diagnosis.signals import SIGNALS

# Shares of the budget where the ranges of sound runs are taken.
SHARES = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0)
# Of the sound runs so many lie outside of a range, at either end.
_OUTSIDE = 0.1
_LEAST_WIDTH = 1e-3
# Strength of the penalty on the sum of the weights.
_PENALTY = 1.0
# So many of the sound runs may reach the risk at which a run is flagged, at some share.
_FALSE_ALARMS = 0.03

_BELOW = np.array([bool(signal.below) for signal in SIGNALS])
_ABOVE = np.array([bool(signal.above) for signal in SIGNALS])


def tune(signals: Mapping[float, Sequence[np.ndarray]], failed: Sequence[bool]) -> RiskModel:
    """Return the model that makes the outcomes of these runs most likely.

    Args:
        signals: at each of `SHARES`: of each run, [signals].
        failed: of each run.
    """
    failed = np.array(failed)
    arrays = {share: _known(np.array(signals[share])) for share in SHARES}
    sound = {share: array[~failed] for share, array in arrays.items()}
    unweighted = RiskModel(
        shares=np.array(SHARES),
        low=np.array([np.nanquantile(sound[share], _OUTSIDE, axis=0) for share in SHARES]),
        high=np.array([np.nanquantile(sound[share], 1 - _OUTSIDE, axis=0) for share in SHARES]),
        width=np.maximum(np.nanstd(np.concatenate(list(sound.values())), axis=0), _LEAST_WIDTH),
        below=np.ones(len(SIGNALS)),
        above=np.ones(len(SIGNALS)),
        offset=0.0,
        flag_at=1.0,
    )
    distances = np.concatenate([unweighted.distances(arrays[share], share) for share in SHARES])
    weights, offset = _most_likely(distances, np.tile(failed, len(SHARES)))
    below, above = np.split(weights, 2)
    model = replace(unweighted, below=below, above=above, offset=offset)
    risks = np.array([model.risks(model.distances(sound[share], share)) for share in SHARES])
    return replace(model, flag_at=float(np.quantile(risks.max(0), 1 - _FALSE_ALARMS)))


def _known(signals: np.ndarray) -> np.ndarray:
    """Replace signals that are known of no run by zeros."""
    return np.where(np.isnan(signals).all(0), 0.0, signals)


def _most_likely(distances: np.ndarray, failed: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights, not negative and 0 where a side means nothing, and the offset of a logistic regression."""
    sign = np.where(failed, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, offset = parameters[:-1], parameters[-1]
        margin = sign * (distances @ weights + offset)
        slope = -sign / (1 + np.exp(margin))
        gradient = np.append(distances.T @ slope + _PENALTY, slope.sum())
        return np.logaddexp(0, -margin).sum() + _PENALTY * weights.sum(), gradient

    means_something = np.concatenate([_BELOW, _ABOVE])
    bounds = [(0.0, None if means else 0.0) for means in means_something] + [(None, None)]
    start = np.append(0.1 * means_something, -1.0)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return best[:-1], float(best[-1])
