"""Declaration of a signal, and what signals share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from attnwatch.recorder import AttentionHistory

MIN_OBSERVATIONS = 6  # fewer can't show a change
_MAX_AVERAGED = 10


@dataclass(frozen=True)
class Signal:
    """Declaration of a signal: one number for the run so far.

    Attributes:
        name: name of the signal.
        number: function of a history with at least `MIN_OBSERVATIONS` observations, in a readable unit; nan if unknown.
        scale: function from the number to the input of the risk model; odd or logarithmic, so that all ranges are
            equally wide.
        title: heading of a chart of the scaled number.
        below, above: meaning of a value below, or above, the range of sound runs; "" for none.
        shown: format string that puts the number into words.
        source: part of the history that the signal comes from.
        of_batches: True if the number says how much the batches differ, which is nothing with tiny data sets.
    """

    name: str
    number: Callable[[AttentionHistory], float]
    scale: Callable[[float], float]
    title: str
    below: str = ""
    above: str = ""
    shown: str = "{:.3g}"
    source: Literal["attention", "loss", "layers"] = "attention"
    of_batches: bool = False


def ends(history: AttentionHistory) -> tuple[AttentionHistory, AttentionHistory]:
    """Return the first and the last observations of a history, as many as are averaged at each end."""
    number = number_at_ends(history)
    return history.first(number), history.at(slice(len(history) - number, None))


def number_at_ends(history: AttentionHistory) -> int:
    """Return the number of observations that are averaged at each end."""
    return max(2, min(_MAX_AVERAGED, len(history) // 4))
