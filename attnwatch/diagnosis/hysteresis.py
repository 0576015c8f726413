"""Flags with patience and hysteresis, so that noise neither raises a flag nor makes it flicker."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Flags:
    """Flags of several sites after every observation.

    Attributes:
        is_up: bool [observations, sites].
        begin: int [observations, sites]: index of the first of the observations in a row that raised the flag;
            without meaning where it is down.
    """

    is_up: np.ndarray
    begin: np.ndarray

    @property
    def now(self) -> np.ndarray:
        """Bool [sites]: flags that are up after the last observation."""
        return self.is_up[-1] if len(self.is_up) else np.zeros(self.is_up.shape[1], dtype=bool)

    @property
    def since(self) -> int:
        """Index of the observation since which at least one flag has always been up; -1 where none is up now.

        It does not change when the site that came first recovers while others do not.
        """
        if not self.now.any():
            return -1
        down = np.flatnonzero(~self.is_up.any(1))
        first = int(down[-1]) + 1 if len(down) else 0
        return int(self.begin[first][self.is_up[first]].min())

    def that_lasted(self, steps: np.ndarray, number: float) -> "Flags":
        """Return the flags that have been up for at least `number` steps; `steps` is int64 [observations]."""
        lasted = steps[:, None] - steps[np.maximum(self.begin, 0)] >= number
        return Flags(self.is_up & lasted, self.begin)


def flags(enter: np.ndarray, leave: np.ndarray, *, patience: int) -> Flags:
    """Raise and lower a flag for each site.

    A flag comes up after `patience` observations in a row in which `enter` holds, and goes down after as many in a
    row in which `leave` holds. Observations in which neither holds interrupt both rows and change nothing.

    Args:
        enter: bool [observations, sites].
        leave: bool [observations, sites], never true together with `enter`.
        patience: at least 1.

    Example:
        >>> values = np.array([[0.0], [3.0], [3.0], [1.5], [1.5], [0.0], [0.0]])
        >>> flags(values > 2, values < 1, patience=2).is_up[:, 0].astype(int)
        array([0, 0, 1, 1, 1, 1, 0])
    """
    index = np.arange(len(enter))[:, None]
    raised = _last_true(_run_lengths(enter) >= patience)
    lowered = _last_true(_run_lengths(leave) >= patience)
    before = np.concatenate([np.full_like(raised[:1], -1), raised[:-1]])
    first_raised = _last_true((raised == index) & (before <= lowered))
    return Flags(first_raised > lowered, first_raised - patience + 1)


def _run_lengths(holds: np.ndarray) -> np.ndarray:
    """Return for how many observations in a row `holds` has been true."""
    return np.arange(len(holds))[:, None] - _last_true(~holds)


def _last_true(holds: np.ndarray) -> np.ndarray:
    """Return the index of the last observation so far at which `holds` was true; -1 where there is none."""
    index = np.arange(len(holds))[:, None]
    return np.maximum.accumulate(np.where(holds, index, -1), axis=0)
