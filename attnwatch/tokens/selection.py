"""How many tokens are kept, and which."""

from fractions import Fraction

import torch
from torch import Tensor


def num_kept(num_tokens: int, keep_ratio: float, *, min_tokens: int, multiple_of: int) -> int:
    """Number of tokens that a sequence keeps: its share, at least the minimum, rounded up to a multiple.

    Never more than there are. In integers, so that it may be the symbolic length of a compiled model.
    """
    ratio = Fraction(keep_ratio).limit_denominator(10**6)
    step = ratio.denominator * multiple_of
    rounded = (num_tokens * ratio.numerator + step - 1) // step * multiple_of
    least = (min_tokens + multiple_of - 1) // multiple_of * multiple_of
    return min(max(rounded, least), num_tokens)


def choose_tokens(scores: Tensor, number: int, *, protected: Tensor | None, padding: Tensor | None) -> Tensor:
    """The tokens with the highest scores; protected ones first, padding last.

    Args:
        scores: [batch, tokens]; nan counts as lowest.
        number: of tokens that are kept in each sequence.
        protected, padding: bool, broadcastable to [batch, tokens].

    Returns:
        int64 [batch, number], positions, ascending.
    """
    lowest, highest = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max
    scores = scores.detach().float().nan_to_num(nan=lowest, posinf=highest, neginf=lowest)
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    if padding is not None:
        scores = scores.masked_fill(padding, -torch.inf)
    return scores.topk(number, dim=1, sorted=False).indices.sort(dim=1).values
