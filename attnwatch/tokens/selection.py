"""Number of the tokens that are kept, and their choice by scores."""

from fractions import Fraction

import torch
from torch import Tensor


def num_kept(num_tokens: int, keep_ratio: float, *, min_tokens: int, multiple_of: int) -> int:
    """Return how many tokens a sequence keeps: its share, at least the minimum, rounded up to a multiple.

    Never more than there are. Computed in integers, so that it may be the symbolic length of a compiled model.

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
    """Return the tokens with the highest scores; protected ones first, padding last.

    Args:
        scores: [batch, tokens]; nan counts as lowest.
        number: of tokens that are kept in each sequence.
        protected, padding: bool, broadcastable to [batch, tokens].

    Returns:
        int64 [batch, number], positions, ascending.

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
