"""Forwards for modules whose own would not work with fewer heads. Each is called as forward(module, …) instead of it.

They take the number of heads from the weights, and agree with the module's own forward while no head is missing.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.capture import CACHES, UNPRUNED_HEADS, kept_heads
from attnwatch.heads.projections import is_conv1d


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
    """`torch.nn.MultiheadAttention`, which itself requires head_dim · num_heads = embed_dim.

    As there, masks are True (or -inf) where attention is not allowed, and `is_causal` is only a hint that `attn_mask`
    is causal.
    """
    if is_causal and attn_mask is None:  # as torch does
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if query.is_nested:  # nn.TransformerEncoder has taken out the padding
        return _multihead_of_nested(module, query, need_weights, average_attn_weights)
    is_batched = query.ndim == 3
    if not is_batched:
        query, key, value = (tokens.unsqueeze(0) for tokens in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not module.batch_first:
        query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
    q, k, v = (
        _split_heads(F.linear(tokens, weight, bias), module.head_dim)
        for tokens, (weight, bias) in zip((query, key, value), _multihead_projections(module), strict=True)
    )
    mask = _multihead_mask(module, attn_mask, key_padding_mask, q)
    dropout = module.dropout if module.training else 0.0
    weights = None
    if need_weights:
        logits = q @ k.mT / module.head_dim**0.5
        weights = F.dropout((logits if mask is None else logits + mask).softmax(-1), dropout)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = _attend(q, k, v, attn_mask=mask, dropout_p=dropout)
    output = module.out_proj(mixed.transpose(1, 2).flatten(2))
    if not is_batched:
        return output.squeeze(0), None if weights is None else weights.squeeze(0)
    return output if module.batch_first else output.transpose(0, 1), weights


def _attend(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """Without heads nothing is left to compute, and torch 2.11 would divide by their number."""
    return F.scaled_dot_product_attention(query, key, value, **options) if query.shape[1] else query


def _multihead_of_nested(module: nn.MultiheadAttention, tokens: Tensor, *options: bool) -> tuple[Tensor, Tensor | None]:
    lengths = torch.tensor([len(sequence) for sequence in tokens.unbind()], device=tokens.device)
    dense = tokens.to_padded_tensor(0.0)
    padding = torch.arange(dense.shape[1], device=dense.device) >= lengths[:, None]
    need_weights, average = options
    output, weights = multihead_forward(module, dense, dense, dense, padding, need_weights, None, average)
    return torch._nested_tensor_from_mask(output, ~padding), weights


def _multihead_projections(module: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None, None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return list(zip(weights, biases, strict=True))


def _multihead_mask(
    module: nn.MultiheadAttention, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
) -> Tensor | None:
    """Both masks as one float mask, broadcastable to [batch, heads, queries, keys]."""
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


def nanogpt_forward(module: nn.Module, x: Tensor) -> Tensor:
    """nanoGPT's CausalSelfAttention, which itself takes the width of its heads from that of the model."""
    q, k, v = (_split_heads(part, nanogpt_head_dim(module)) for part in module.c_attn(x).chunk(3, dim=-1))
    dropout = module.dropout if module.training else 0.0
    mixed = _attend(q, k, v, dropout_p=dropout, is_causal=True)
    return module.resid_dropout(module.c_proj(mixed.transpose(1, 2).flatten(2)))


def nanogpt_head_dim(module: nn.Module) -> int:
    num_heads, *_ = getattr(module, UNPRUNED_HEADS, (module.n_head,))
    return module.n_embd // num_heads


def timm_forward(module: nn.Module, x: Tensor, attn_mask: Tensor | None = None, *args, **kwargs) -> Tensor:
    """timm's Attention, which itself takes the mask of its own heads only."""
    return type(module).forward(module, x, _of_kept_heads(module, attn_mask), *args, **kwargs)


def early_timm_forward(
    module: nn.Module, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """timm's Attention where its own forward gives the mixed values the width of the model."""
    q, k, v = (_split_heads(part, module.head_dim) for part in module.qkv(x).chunk(3, dim=-1))
    dropout = module.attn_drop.p if module.training else 0.0
    mask = _of_kept_heads(module, attn_mask)
    q, k = module.q_norm(q), module.k_norm(k)
    mixed = _attend(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    return module.proj_drop(module.proj(mixed.transpose(1, 2).flatten(2)))


def _of_kept_heads(module: nn.Module, mask: Tensor | None) -> Tensor | None:
    """A mask [..., heads, queries, keys] of all heads of the unpruned module, without those that are gone."""
    num_unpruned, *_ = getattr(module, UNPRUNED_HEADS, (None,))
    kept = kept_heads(module)
    if mask is None or kept is None or mask.ndim < 3 or mask.shape[-3] != num_unpruned or num_unpruned == 1:
        return mask
    return mask.index_select(-3, kept.to(mask.device))


def t5_forward(
    module: nn.Module,
    hidden_states: Tensor,
    mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    position_bias: Tensor | None = None,
    *args,
    **kwargs,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """T5's attention. Layers hand the position bias of all heads on, whichever heads each of them still has."""
    cache = args[0] if args else cache_in(kwargs)
    if position_bias is None:
        position_bias = _t5_position_bias(module, hidden_states, key_value_states, cache)
    own = position_bias if position_bias.shape[1] == 1 else position_bias[:, kept_heads(module)]
    if module.n_heads == 0:
        output = forward_without_heads(module, "o", hidden_states, key_value_states, cache)
        return output, position_bias, None
    output, _, weights = type(module).forward(module, hidden_states, mask, key_value_states, own, *args, **kwargs)
    return output, position_bias, weights


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The key-value cache among a call's arguments, or None."""
    return next((arguments[name] for name in CACHES if name in arguments), None)


def _t5_position_bias(module: nn.Module, hidden_states: Tensor, key_value_states: Tensor | None, cache) -> Tensor:
    past, queries = 0, hidden_states.shape[1]
    keys = queries if key_value_states is None else key_value_states.shape[1]
    if cache is not None and key_value_states is None:
        past = cache.get_seq_length(module.layer_idx)
        keys, _ = cache.get_mask_sizes(queries, module.layer_idx)
    if module.has_relative_attention_bias:
        return module.compute_bias(queries, keys, device=hidden_states.device, past_seen_tokens=past)
    return hidden_states.new_zeros((1, 1, queries, keys))


def forward_without_heads(
    module: nn.Module,
    output: str | None,
    hidden_states: Tensor,
    key_value_states: Tensor | None = None,
    cache=None,
    cache_position: Tensor | None = None,
) -> Tensor:
    """What is left of attention without heads: the output projection's bias, [..., features].

    All parameters and inputs take part in a backward, although nothing depends on them.
    """
    everything = (*module.parameters(), *(() if key_value_states is None else (key_value_states,)))
    nothing = sum(tensor.flatten()[:0].sum() for tensor in everything)
    empty = hidden_states[..., :0] + nothing
    if cache is not None and key_value_states is None and getattr(module, "layer_idx", None) is not None:
        # The cache counts the tokens that it has seen in the states of a layer; a static one those that are not zero.
        seen = hidden_states.new_ones((hidden_states.shape[0], 1, hidden_states.shape[1], 1))
        at = () if cache_position is None else ({"cache_position": cache_position},)  # models gave it, early ones
        getattr(cache, "self_attention_cache", cache).update(seen, seen, module.layer_idx, *at)
    if output is None:
        return empty
    projection = module.get_submodule(output)
    if is_conv1d(projection):  # its own forward can't reshape what is empty
        return empty @ projection.weight + projection.bias
    return projection(empty)


def _split_heads(features: Tensor, head_dim: int) -> Tensor:
    """[batch, tokens, heads · head_dim] to [batch, heads, tokens, head_dim]."""
    return features.unflatten(-1, (-1, head_dim)).transpose(1, 2)
