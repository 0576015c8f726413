"""Number of tokens to keep, and their choice by scores."""

from fractions import Fraction

import torch
from torch import Tensor


def num_kept(num_tokens: int, keep_ratio: float, *, min_tokens: int, multiple_of: int) -> int:
    """Return the number of tokens that a sequence keeps: its share, at least the minimum, rounded up to a multiple.

    Never more than the sequence has. Computed in integers, so that it works with symbolic lengths in compiled models.

    Example:
        >>> num_kept(100, 0.5, min_tokens=16, multiple_of=8)
        56
    """
    ratio = Fraction(keep_ratio).limit_denominator(10**6)
    step = ratio.denominator * multiple_of
    rounded = (num_tokens * ratio.numerator + step - 1) // step * multiple_of
    least = (min_tokens + multiple_of - 1) // multiple_of * multiple_of
    return min(max(rounded, least), num_tokens)


def choose_tokens(scores: Tensor, number: int, *, protected: Tensor | None, padding: Tensor | None) -> Tensor:
    """Return the tokens with the highest scores, protected tokens first, padding last.

    Args:
        scores: scores [batch, tokens]; nan counts as lowest.
        number: number of tokens to keep in each sequence.
        protected, padding: bool masks, broadcastable to [batch, tokens].

    Returns:
        Positions, int64 [batch, number], ascending.

    Example:
        >>> choose_tokens(torch.tensor([[0.1, 0.9, 0.5, 0.8]]), 2, protected=None, padding=None)
        tensor([[1, 3]])
    """
    lowest, highest = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max
    scores = scores.detach().float().nan_to_num(nan=lowest, posinf=highest, neginf=lowest)
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    if padding is not None:
        scores = scores.masked_fill(padding, -torch.inf)
    return scores.topk(number, dim=1, sorted=False).indices.sort(dim=1).values
