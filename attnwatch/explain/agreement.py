"""Whether two stories about the same tokens rank them alike."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Of fewer tokens a rank correlation says nothing: with two it is 1 or -1.
_FEWEST_TOKENS = 3


@dataclass(frozen=True)
class MeanOverSequences:
    """A mean over sequences, with its uncertainty.

    Attributes:
        mean: nan of no sequence.
        stderr: its standard error; nan of fewer than two sequences.
        num_sequences: that it is the mean of.

    >>> print(MeanOverSequences.of(torch.tensor([1.0, 3.0])))
    2.000 ± 1.000 (2 sequences)
    """

    mean: float
    stderr: float
    num_sequences: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.stderr:.3f} ({self.num_sequences} sequences)"

    @classmethod
    def of(cls, values: Tensor) -> "MeanOverSequences":
        """Of [sequences], those that are nan left out."""
        known = values[~values.isnan()].double()
        number = len(known)
        return cls(
            float(known.mean()) if number else math.nan,
            float(known.std() / number**0.5) if number > 1 else math.nan,
            number,
        )


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, float64 [values]; equal values share the mean of their ranks.

    >>> average_ranks(torch.tensor([30.0, 10.0, 30.0, 20.0])).tolist()
    [3.5, 1.0, 3.5, 2.0]
    """
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return below.double() + (equal.double() + 1) / 2


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each row: Pearson's correlation of the average ranks, float64 [rows].

    Args:
        first, second: [rows, values]; where either is nan the value does not count.

    Returns:
        Between -1 and 1; nan where fewer than three values count, or where all of them are equal.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5.0, 4.0, 9.0]])).tolist()
    [0.5]
    """
    return torch.stack([_of_row(*pair) for pair in zip(first, second, strict=True)])


def _of_row(first: Tensor, second: Tensor) -> Tensor:
    counts = ~(first.isnan() | second.isnan())
    nothing = torch.tensor(torch.nan, dtype=torch.float64, device=first.device)
    if int(counts.sum()) < _FEWEST_TOKENS:
        return nothing
    ranks = torch.stack([average_ranks(first[counts]), average_ranks(second[counts])])
    ranks = ranks - ranks.mean(1, keepdim=True)
    squares = ranks.square().sum(1)
    return (ranks[0] * ranks[1]).sum() / squares.prod().sqrt() if bool((squares > 0).all()) else nothing
