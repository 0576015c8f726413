"""Modules from PyTorch itself: `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.capture import kept_heads
from attnwatch.heads.forwards import attend, split_heads
from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily
from attnwatch.plugins import register
from attnwatch.tokens.axes import take
from attnwatch.tokens.layouts import TokenLayout


@register
class PyTorch(ModelFamily):
    """Modules of `torch.nn`. Subclasses with their own forward are not included."""

    name = "pytorch"

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        if not isinstance(module, nn.MultiheadAttention) or module.add_zero_attn:
            return None
        if type(module).forward is not nn.MultiheadAttention.forward:
            return None
        joint = {"in_proj_weight": "q|k|v"}
        separate = {"q_proj_weight": "q", "k_proj_weight": "k", "v_proj_weight": "v"}
        return HeadLayout(
            {**(separate if module.in_proj_weight is None else joint), "in_proj_bias": "q|k|v"},
            output="out_proj",
            head_dim="head_dim",
            forward=multihead_forward,
            returns=None,
            # False keeps nn.TransformerEncoder off its fused inference path.
            when_pruned={"_qkv_same_embed_dim": (module.in_proj_weight is not None, False)},
            calls_output=False,
        )

    def token_layout(self, layer: nn.Module) -> TokenLayout | None:
        kind = nn.TransformerEncoderLayer
        return _ENCODER_LAYER if isinstance(layer, kind) and type(layer).forward is kind.forward else None


def multihead_forward(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute `torch.nn.MultiheadAttention`, whose own forward requires head_dim · num_heads = embed_dim.

    As there, masks are True (or -inf) where attention is not allowed, and `is_causal` is only a hint that `attn_mask`
    is causal.
    """
    if is_causal and attn_mask is None:  # same as torch
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if query.is_nested:  # nn.TransformerEncoder has removed the padding
        return _forward_of_nested(module, query, need_weights, average_attn_weights)
    is_batched = query.ndim == 3
    if not is_batched:
        query, key, value = (tokens.unsqueeze(0) for tokens in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not module.batch_first:
        query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
    q, k, v = (
        split_heads(F.linear(tokens, weight, bias), module.head_dim)
        for tokens, (weight, bias) in zip((query, key, value), _projections(module), strict=True)
    )
    mask = _joint_mask(module, attn_mask, key_padding_mask, q)
    dropout = module.dropout if module.training else 0.0
    weights = None
    if need_weights:
        logits = q @ k.mT / module.head_dim**0.5
        weights = F.dropout((logits if mask is None else logits + mask).softmax(-1), dropout)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = attend(q, k, v, mask, dropout)
    output = module.out_proj(mixed.transpose(1, 2).flatten(2))
    if not is_batched:
        return output.squeeze(0), None if weights is None else weights.squeeze(0)
    return output if module.batch_first else output.transpose(0, 1), weights


def _forward_of_nested(
    module: nn.MultiheadAttention, tokens: Tensor, need_weights: bool, average: bool
) -> tuple[Tensor, Tensor | None]:
    lengths = torch.tensor([len(sequence) for sequence in tokens.unbind()], device=tokens.device)
    dense = tokens.to_padded_tensor(0.0)
    padding = torch.arange(dense.shape[1], device=dense.device) >= lengths[:, None]
    output, weights = multihead_forward(module, dense, dense, dense, padding, need_weights, None, average)
    return torch._nested_tensor_from_mask(output, ~padding), weights


def _projections(module: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the query, key and value projections."""
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None, None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return list(zip(weights, biases, strict=True))


def _joint_mask(
    module: nn.MultiheadAttention, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
) -> Tensor | None:
    """Return both masks as one float mask, broadcastable to [batch, heads, queries, keys]."""
    parts = []
    if attn_mask is not None:
        if attn_mask.ndim == 3 and attn_mask.shape[0] != 1:  # one per sequence and head of the unpruned module
            attn_mask = attn_mask.unflatten(0, (query.shape[0], -1))
            if attn_mask.shape[1] != query.shape[1]:
                attn_mask = attn_mask[:, kept_heads(module)]
        parts.append(_additive(attn_mask, query.dtype))
    if key_padding_mask is not None:
        parts.append(_additive(key_padding_mask, query.dtype)[:, None, None, :])
    return sum(parts[1:], parts[0]) if parts else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf) if mask.dtype == torch.bool else mask


def _attention_of(layer: nn.Module) -> nn.MultiheadAttention:
    return cast(nn.MultiheadAttention, layer.self_attn)


def _route_mask(mask: Tensor, kept: Tensor, layer: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
    """Route `src_mask` [tokens, tokens] or [batch · heads, tokens, tokens]."""
    if mask.ndim == 2:
        if arguments.get("is_causal"):  # kept in order, so earlier tokens stay earlier
            return mask[: kept.shape[1], : kept.shape[1]]
        return take(mask, "tokens tokens", kept).repeat_interleave(_attention_of(layer).num_heads, 0)
    heads = mask.unflatten(0, (len(kept), -1))
    return take(heads, "batch heads tokens tokens", kept).flatten(0, 1)


_ENCODER_LAYER = TokenLayout(
    "src",
    routed={"src_mask": _route_mask, "src_key_padding_mask": "batch tokens"},
    whole=("is_causal",),
    batch_first=lambda layer: _attention_of(layer).batch_first,
)
