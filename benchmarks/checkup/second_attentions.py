"""Attention with faults of the second blind set, for `second_flow`."""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_to_almost_zero(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Set masked scores to 1e-9, where -1e9 was meant."""
    scores = q @ k.mT * scale
    return (scores if mask is None else scores.masked_fill(mask < 0, 1e-9)).softmax(-1) @ v


def masked_after_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Set weights to zero after the softmax, whose sum has padding in it."""
    weights = (q @ k.mT * scale).softmax(-1)
    return (weights if mask is None else weights * (mask >= 0)) @ v


def over_views(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """View [batch, tokens] as [tokens, batch], where a transpose was meant."""
    batch, heads, tokens, width = q.shape
    q, k, v = (each.transpose(1, 2).reshape(tokens, batch, heads, width).permute(1, 2, 0, 3) for each in (q, k, v))
    scores = q @ k.mT * scale
    attended = (scores if mask is None else scores + mask).softmax(-1) @ v
    return attended.permute(2, 0, 1, 3).reshape(batch, tokens, heads, width).transpose(1, 2)


def elementwise(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Multiply queries, keys and values element by element."""
    return (q * k * scale).softmax(-1) * v


def weights_summed_away(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Weigh values by letters of an einsum that do not sum over the keys' tokens."""
    scores = q @ k.mT * scale
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return torch.einsum("bhqk,bhqd->bhqd", weights, v)


def steep_distances(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Subtract distances by slopes of 2^(8/h), where 2^(-8/h) was meant."""
    distances = (torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])).abs()
    slopes = 2.0 ** (8 * (1 + torch.arange(q.shape[1])) / q.shape[1])[:, None, None]
    scores = q @ k.mT * scale - slopes * distances
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def twice_exponentiated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Multiply cosines by the exponential of what was exponentiated already."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * torch.tensor(2.66).exp().exp()
    return (scores if mask is None else scores + mask).softmax(-1) @ v
