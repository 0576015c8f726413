"""Signals of a history that predict the outcome of the run: a few dimensionless numbers, the same for all models.

Each signal is declared once; the risk model and its tuning follow from the declaration.
"""

import numpy as np

from attnwatch.diagnosis.signals.attention import ATTENTION
from attnwatch.diagnosis.signals.base import MIN_OBSERVATIONS, Signal
from attnwatch.diagnosis.signals.layers import LAYERS
from attnwatch.diagnosis.signals.loss import LOSS, clearly_falls
from attnwatch.recorder import AttentionHistory

__all__ = ["MIN_OBSERVATIONS", "SIGNALS", "Signal", "evidence_in", "evidence_of", "numbers_of", "signals_of"]

SIGNALS = (*ATTENTION, *LOSS, *LAYERS)
_MAX_OBSERVATIONS = 100
_OF_BATCHES = np.array([signal.of_batches for signal in SIGNALS])


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

    While the loss clearly falls, noise depends on the size of the batches: there is none if all batches are the same,
    as with tiny data sets.
    """
    falls = len(history) >= MIN_OBSERVATIONS and clearly_falls(_evenly_spaced(history))
    return np.where(_OF_BATCHES & falls, np.nan, signals)


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
