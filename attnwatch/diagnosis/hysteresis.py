"""Flags that neither come on a whim nor flicker."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Flags:
    """Flags of several sites after every observation.

    Attributes:
        is_up: bool [observations, sites].
        begin: int [observations, sites]: index of the observation at which the row began that raised the flag; of no
            meaning where it is down.
    """

    is_up: np.ndarray
    begin: np.ndarray

    @property
    def now(self) -> np.ndarray:
        """Bool [sites]: those that are up after the last observation."""
        return self.is_up[-1] if len(self.is_up) else np.zeros(self.is_up.shape[1], dtype=bool)

    @property
    def since(self) -> int:
        """Index of the observation since which some flag has been up all the time; -1 where none is now.

        It stays where it is when the site that came first recovers and others do not.
        """
        if not self.now.any():
            return -1
        down = np.flatnonzero(~self.is_up.any(1))
        first = down[-1] + 1 if len(down) else 0
        return int(self.begin[first][self.is_up[first]].min())


def flags(enter: np.ndarray, leave: np.ndarray, *, patience: int) -> Flags:
    """Raise and lower a flag for each site.

    A flag comes up after `patience` observations in a row in which `enter` holds, and goes down after as many in a
    row in which `leave` holds. Observations in which neither holds interrupt both rows and change nothing.

    Args:
        enter: bool [observations, sites].
        leave: bool [observations, sites], never together with `enter`.
        patience: at least 1.
    """
    index = np.arange(len(enter))[:, None]
    raised = _latest(np.where(_run_lengths(enter) >= patience, index, -1))
    lowered = _latest(np.where(_run_lengths(leave) >= patience, index, -1))
    before = np.concatenate([np.full_like(raised[:1], -1), raised[:-1]])
    first_raised = _latest(np.where((raised == index) & (before <= lowered), index, -1))
    return Flags(first_raised > lowered, first_raised - patience + 1)


def onset(enter: np.ndarray, leave: np.ndarray, *, patience: int) -> np.ndarray:
    """Since when the flag of each site holds at the end: int [sites], -1 where it is down. See `flags`."""
    found = flags(enter, leave, patience=patience)
    return np.where(found.now, found.begin[-1], -1)


def _latest(values: np.ndarray) -> np.ndarray:
    """The largest value so far, along the first axis."""
    return np.maximum.accumulate(values, axis=0)


def _run_lengths(holds: np.ndarray) -> np.ndarray:
    """For how many observations in a row `holds` has been true."""
    index = np.arange(len(holds))[:, None]
    return index - _latest(np.where(holds, -1, index))
