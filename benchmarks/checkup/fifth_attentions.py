"""Attention of a fifth blind set, with faults for `fifth_flow` and sound for `odd_fifth`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.nets import HEADS

_FURTHEST, _BASE = 24, 100.0


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.mT * scale
    return scores if mask is None else scores + mask


def _distances(q: Tensor, k: Tensor) -> Tensor:
    return torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])


def _rotated(states: Tensor, places: Tensor) -> Tensor:
    """Rotate pairs of features by angles that grow with the places, which are broadcast over the features."""
    half = states.shape[-1] // 2
    angles = places[..., None] * _BASE ** (-torch.arange(half) / half)
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def rotated_by_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Rotate queries and keys by the number of their head, as the axis of the tokens is thought to be there."""
    q, k = (_rotated(each, torch.arange(each.shape[1])[:, None]) for each in (q, k))
    return _scores(q, k, mask, scale).softmax(-1) @ v


def rotated_by_tokens(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Rotate queries and keys by the number of their token."""
    q, k = (_rotated(each, torch.arange(each.shape[2])) for each in (q, k))
    return _scores(q, k, mask, scale).softmax(-1) @ v


def near_by_tenth(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Penalise distances by a bell of a tenth of a token."""
    return (_scores(q, k, mask, scale) - _distances(q, k).square() / (2 * 0.1**2)).softmax(-1) @ v


def near_by_four(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Penalise distances by a bell of four tokens."""
    return (_scores(q, k, mask, scale) - _distances(q, k).square() / (2 * 4**2)).softmax(-1) @ v


def hundredfold(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Multiply scores by a hundred, as if they were cosines."""
    return _scores(q, k, mask, 100.0).softmax(-1) @ v


def dilated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Let the second half of the heads see every other token only."""
    is_hidden = (_distances(q, k) % 2 == 1) & (torch.arange(q.shape[1]) >= q.shape[1] // 2)[:, None, None]
    return _scores(q, k, mask, scale).masked_fill(is_hidden, -1e9).softmax(-1) @ v


def talking_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Mix the weights of the heads a little."""
    weights = _scores(q, k, mask, scale).softmax(-1)
    return (0.8 * weights + 0.2 * weights.mean(1, keepdim=True)) @ v


def in_chunks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend for a few queries at a time."""
    parts = [slice(begin, begin + 5) for begin in range(0, q.shape[2], 5)]
    masks = [mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :] for part in parts]
    attended = [_scores(q[:, :, part], k, of, scale).softmax(-1) @ v for part, of in zip(parts, masks, strict=True)]
    return torch.cat(attended, 2)


def sparse_top(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend to the eight best keys alone."""
    scores = _scores(q, k, mask, scale)
    least = scores.topk(min(8, scores.shape[-1]), -1).values[..., -1:]
    return scores.masked_fill(scores < least, -1e9).softmax(-1) @ v


def with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Hide a tenth of the keys at random before the softmax."""
    scores = _scores(q, k, mask, scale)
    is_dropped = (torch.rand(scores.shape) < 0.1) & ~torch.eye(*scores.shape[-2:], dtype=torch.bool)
    return scores.masked_fill(is_dropped, -1e9).softmax(-1) @ v


def with_bias_of_distances(deviation: float) -> Callable[[nn.Module], None]:
    """Return the change of models that adds a learned number for each distance and head to the scores."""

    def prepare(model: nn.Module) -> None:
        model.distances = nn.Parameter(torch.randn(HEADS, 2 * _FURTHEST) * deviation)

        def biased(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
            places = (_distances(q, k) + _FURTHEST).clamp(0, 2 * _FURTHEST - 1)
            return (_scores(q, k, mask, scale) + model.distances[:, places]).softmax(-1) @ v

        by_hand(biased)(model)

    return prepare


def of_normed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Norm what each head returns, as differential attention and retention do."""
    attended = _scores(q, k, mask, scale).softmax(-1) @ v
    return F.layer_norm(attended, attended.shape[-1:])
