"""Rank correlation of two scores of the same tokens, and means over sequences with their standard errors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnwatch.utils.extras import extra_needed

# With two tokens, a rank correlation is always 1 or -1.
_FEWEST_TOKENS = 3


@dataclass(frozen=True)
class MeanOverSequences:
    """Mean over sequences with its standard error.

    Attributes:
        mean: mean over sequences; nan without sequences.
        stderr: standard error of the mean; nan with fewer than two sequences.
        num_sequences: number of sequences.

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
        """Return the mean of values [sequences], or of means over layers of [layers, sequences], ignoring nan."""
        values = values if values.ndim == 1 else values.nanmean(0)
        known = values[~values.isnan()].double()
        number = len(known)
        return cls(
            float(known.mean()) if number else math.nan,
            float(known.std() / number**0.5) if number > 1 else math.nan,
            number,
        )


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each row, float64 [rows] or [..., rows].

    Args:
        first, second: values [rows, values] or [..., rows, values]; values that are nan in either are ignored.

    Returns:
        Correlations between -1 and 1; nan if fewer than three values remain, or all of them are equal.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5.0, 4.0, 9.0]])).tolist()
    [0.5]
    """
    with extra_needed("explain", "a rank correlation"):
        from scipy.stats import spearmanr
    pairs = torch.stack(torch.broadcast_tensors(first, second), -2)
    correlations = []
    for pair in pairs.flatten(0, -3).double().cpu():
        known = pair[:, ~pair.isnan().any(0)]
        is_known = known.shape[1] >= _FEWEST_TOKENS and bool((known != known[:, :1]).any(1).all())
        correlations.append(spearmanr(*known.numpy()).statistic if is_known else math.nan)
    return torch.tensor(correlations, dtype=torch.float64, device=first.device).view(pairs.shape[:-2])
