"""Attention computed by hand, in own nets and in models of transformers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from benchmarks.checkup.nets import Attention
from benchmarks.checkup.scripts import Prepare

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""Function of queries, keys and values [batch, heads, tokens, width], what is added to the scores, and the scale."""


def by_hand(attend: Attend) -> Prepare:
    """Return the change of models that replaces how attention is computed."""
    name = f"benchmark_{attend.__name__}"
    AttentionInterface.register(name, _of_transformers(attend))
    AttentionMaskInterface.register(name, eager_mask)

    def prepare(model: nn.Module) -> None:
        own = [module for module in model.modules() if isinstance(module, Attention)]
        for module in own:
            module.attend = _of_own_net(attend)
        if not own:
            model.set_attn_implementation(name)

    return prepare


def _of_own_net(attend: Attend) -> Callable[..., Tensor]:
    def of_net(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        if mask is None and is_causal:
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        added = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -1e9)
        return attend(q, k, v, added, q.shape[-1] ** -0.5)

    return of_net


def _of_transformers(attend: Attend) -> Callable[..., tuple[Tensor, None]]:
    def of_model(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: object,
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(query, key, value, attention_mask, scale).transpose(1, 2).contiguous(), None

    return of_model


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.mT * scale
    return scores if mask is None else scores + mask


def hard(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Take the value of the best key alone."""
    return F.one_hot(_scores(q, k, mask, scale).argmax(-1), k.shape[-2]).to(v.dtype) @ v


def over_first_axis(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Normalise the scores over the batch."""
    return _scores(q, k, mask, scale).softmax(0) @ v


def over_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend from head to head within each token."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return (_scores(q, k, None, scale).softmax(-1) @ v).transpose(1, 2)


def of_cosines(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Take cosines as scores, and still divide them by the root of the width."""
    return _scores(F.normalize(q, dim=-1), F.normalize(k, dim=-1), mask, scale).softmax(-1) @ v


def of_scaled_cosines(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Take ten times the cosines as scores."""
    return _scores(F.normalize(q, dim=-1), F.normalize(k, dim=-1), mask, 10.0).softmax(-1) @ v


def with_distances(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Subtract distances from the scores, each head by a slope of its own."""
    distances = (torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])).abs()
    slopes = 2.0 ** -(1 + torch.arange(q.shape[1]))[:, None, None]
    return (_scores(q, k, mask, scale) - slopes * distances).softmax(-1) @ v
