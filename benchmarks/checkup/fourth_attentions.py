"""Attention of a fourth blind set, with faults for `fourth_flow` and sound for `odd_fourth`."""

import torch
from torch import Tensor

_CAP = 50.0


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.mT * scale
    return scores if mask is None else scores + mask


def filled_where_zero(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Hide keys where the mask is zero, which in a mask that is added says that they are seen."""
    scores = q @ k.mT * scale
    return (scores if mask is None else scores.masked_fill(mask == 0, -1e9)).softmax(-1) @ v


def filled_where_negative(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Hide keys where the mask that is added is negative."""
    scores = q @ k.mT * scale
    return (scores if mask is None else scores.masked_fill(mask < 0, -1e9)).softmax(-1) @ v


def heads_before_texts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Flatten texts and heads to one axis, and take them apart as heads and texts."""
    texts, heads, tokens, width = q.shape
    attended = (_scores(q, k, mask, scale).softmax(-1) @ v).reshape(texts * heads, tokens, width)
    return attended.view(heads, texts, tokens, width).transpose(0, 1)


def heads_after_texts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Flatten texts and heads to one axis, and take them apart again."""
    attended = _scores(q, k, mask, scale).softmax(-1).flatten(0, 1) @ v.flatten(0, 1)
    return attended.view(q.shape)


def in_one_row(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Put the keys of all texts into one row, without the borders of the texts."""
    scores = torch.einsum("bhqd,chkd->bhqck", q, k) * scale
    if mask is not None:
        scores = scores + mask.permute(1, 2, 0, 3)
    weights = scores.flatten(-2).softmax(-1).view(scores.shape)
    return torch.einsum("bhqck,chkd->bhqd", weights, v)


def first_key_only(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Read keys and values at an index that is never counted up, so that all see the begin alone."""
    return _scores(q, k[:, :, :1], None, scale).softmax(-1) @ v[:, :, :1]


def caps_swapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Cap scores at a fiftieth, as they are multiplied by the cap where they should be divided."""
    scores = (q @ k.mT * scale * _CAP).tanh() / _CAP
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Cap scores at fifty."""
    scores = (q @ k.mT * scale / _CAP).tanh() * _CAP
    return (scores if mask is None else scores + mask).softmax(-1) @ v
