"""Flags that neither come on a whim nor flicker."""

import numpy as np


def onset(enter: np.ndarray, leave: np.ndarray, *, patience: int) -> np.ndarray:
    """Since when a flag holds at the end.

    A flag comes up after `patience` observations in a row in which `enter` holds, and goes down after as many in a
    row in which `leave` holds. Observations in which neither holds interrupt both rows and change nothing.

    Args:
        enter: bool [observations, sites].
        leave: bool [observations, sites], never together with `enter`.
        patience: at least 1.

    Returns:
        int [sites]: index of the observation at which the row began that raised the flag; -1 where it is down.
    """
    index = np.arange(len(enter))[:, None]
    last_lowered = np.where(_run_lengths(leave) >= patience, index, -1).max(0)
    raised = (_run_lengths(enter) >= patience) & (index > last_lowered)
    return np.where(raised.any(0), raised.argmax(0) - patience + 1, -1)


def _run_lengths(holds: np.ndarray) -> np.ndarray:
    """For how many observations in a row `holds` has been true."""
    index = np.arange(len(holds))[:, None]
    return index - np.maximum.accumulate(np.where(holds, -1, index), axis=0)
