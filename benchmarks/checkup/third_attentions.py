"""Attention of a third blind set, with faults for `third_flow` and sound for `odd_third`."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.mT * scale
    return scores if mask is None else scores + mask


def softmax_twice(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Take the softmax of weights, of which those of masked keys are zero and not minus infinity."""
    return _scores(q, k, mask, scale).softmax(-1).softmax(-1) @ v


def values_of_all_texts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Sum over the texts by a letter of an einsum that differs from that of the weights."""
    return torch.einsum("bhqk,chkd->bhqd", _scores(q, k, mask, scale).softmax(-1), v)


def with_gains_of_width(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Normalise queries and keys, and multiply each by its width, where a gain of 1 was meant."""
    width = q.shape[-1]
    q, k = (F.rms_norm(each, (width,)) * width for each in (q, k))
    return _scores(q, k, mask, scale).softmax(-1) @ v


def infinite_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Set masked scores to minus infinity, in rows without any other too."""
    scores = q @ k.mT * scale
    return (scores if mask is None else scores.masked_fill(mask < 0, -math.inf)).softmax(-1) @ v


def infinite_rows_zeroed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Set masked scores to minus infinity, and the weights of rows without any other to zero before the softmax."""
    scores = q @ k.mT * scale
    if mask is None:
        return scores.softmax(-1) @ v
    is_empty = (mask < 0).all(-1, keepdim=True)
    return scores.masked_fill((mask < 0) & ~is_empty, -math.inf).softmax(-1).masked_fill(is_empty, 0.0) @ v


def softmax_of_logarithms(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Take the softmax of the logarithms of weights, which changes nothing."""
    return _scores(q, k, mask, scale).log_softmax(-1).softmax(-1) @ v


def keys_of_one_head(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Let all heads share the mean of the heads' keys and values."""
    k, v = (each.mean(1, keepdim=True) for each in (k, v))
    scores = torch.einsum("bhqd,bgkd->bhqk", q, k) * scale
    return torch.einsum("bhqk,bgkd->bhqd", (scores if mask is None else scores + mask).softmax(-1), v)


def by_length(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Multiply scores by the logarithm of the number of keys."""
    return _scores(q, k, mask, scale * math.log(max(k.shape[-2], 3))).softmax(-1) @ v


def with_gains_of_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Normalise queries and keys to a mean square of 1."""
    q, k = (F.rms_norm(each, (q.shape[-1],)) for each in (q, k))
    return _scores(q, k, mask, scale).softmax(-1) @ v
