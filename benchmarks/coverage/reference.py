"""Attention statistics by their definitions, in float64, from whole matrices of attention weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# A key with a smaller weight is hidden, by a mask of -inf or of -100 (Swin): tiny models have no logits so far apart.
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Weights:
    """Attention weights of one call of an attention module.

    Attributes:
        values: [batch, heads, queries, keys].
        is_cross: queries and keys are different tokens.
        real: bool [batch, queries], False at padding; None: all are real.
        has_sink: what is missing in a row's sum is on a sink that the head has learned: a key that is no token.
    """

    values: Tensor
    is_cross: bool = False
    real: Tensor | None = None
    has_sink: bool = False


def statistics_of(calls: Iterable[Weights]) -> dict[str, Tensor]:
    """Return the statistics that follow from weights alone: float64 [heads] by name, nan where no row counts.

    Rows that see two keys and are not padding count, of all calls together.
    """
    sums: dict[str, Tensor] = {}
    for call in calls:
        for name, (values, counts) in _rows(call).items():
            dims = (0, 2) if values.ndim == 3 else (1,)
            part = torch.stack([torch.where(counts, values, 0).sum(dims), counts.sum(dims).double()])
            sums[name] = sums[name] + part if name in sums else part
    return {name: total / number for name, (total, number) in sums.items()}


def _rows(call: Weights) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the values of rows and whether they count: [batch, heads, queries], or [heads, queries] of the batch."""
    weights = call.values.detach().double()
    on_tokens = weights.sum(-1) if call.has_sink else torch.ones_like(weights[..., 0])
    weights = weights / on_tokens[..., None]
    visible = weights >= _SMALLEST
    num_visible = visible.sum(-1)
    counts = num_visible >= 2
    if call.real is not None:
        counts = counts & call.real[:, None]
    first = visible.to(torch.uint8).argmax(-1, keepdim=True)
    sink = weights.gather(-1, first).squeeze(-1)
    entropy = _entropy(weights)
    rest = weights.scatter(-1, first, 0)
    rows = {
        "entropy": entropy,
        "normalized_entropy": entropy / num_visible.log(),
        "max_entropy": num_visible.double().log(),
        "logit_std": _std_of_logits(weights, visible),
        "sink_mass": 1 - on_tokens + on_tokens * sink,
        "max_weight": on_tokens * weights.amax(-1),
        "entropy_without_sink": _entropy(rest / rest.sum(-1, keepdim=True)),
    }
    result = {name: (values, counts) for name, values in rows.items()}
    same_tokens = not call.is_cross and weights.shape[-2] == weights.shape[-1]
    result["distance"] = (_distance(weights), counts & same_tokens)
    comparable = counts.all(0) & (visible == visible[:1]).all(-1).all(0) & (len(weights) > 1)
    result["content_sensitivity"] = (_entropy(weights.mean(0)) - entropy.mean(0), comparable)
    return result


def _entropy(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum(-1)


def _std_of_logits(weights: Tensor, visible: Tensor) -> Tensor:
    """Return the standard deviation of logits: logarithms of the weights, up to a number that the whole row shares."""
    logits, number = torch.where(visible, weights, 1).log(), visible.sum(-1, keepdim=True)
    deviations = torch.where(visible, logits - logits.sum(-1, keepdim=True) / number, 0)
    return (deviations.square().sum(-1) / number.squeeze(-1)).sqrt()


def _distance(weights: Tensor) -> Tensor:
    queries, keys = (torch.arange(size) for size in weights.shape[-2:])
    return (weights * (queries[:, None] - keys).abs()).sum(-1)
