"""Building blocks of forwards for attention modules with fewer heads than their own forward supports."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.capture import CACHES
from attnwatch.heads.projections import is_conv1d


def split_heads(features: Tensor, head_dim: int) -> Tensor:
    """Return [batch, tokens, heads · head_dim] as [batch, heads, tokens, head_dim]."""
    return features.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, *, is_causal: bool = False
) -> Tensor:
    """Call `scaled_dot_product_attention`, unless there are no heads: torch 2.11 would divide by zero."""
    if not query.shape[1]:
        return query
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal)


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """Return the key-value cache among a call's arguments, or None."""
    return next((arguments[name] for name in CACHES if name in arguments), None)


def forward_without_heads(
    module: nn.Module,
    output: str | None,
    hidden_states: Tensor,
    key_value_states: Tensor | None = None,
    cache: Any = None,
    cache_position: Tensor | None = None,
) -> Tensor:
    """Return the output of attention without heads: the bias of the output projection, [..., features].

    All parameters and inputs stay part of the autograd graph, although the output does not depend on them.

    Args:
        module: attention module.
        output: path of its output projection; None if that lies outside the module, and the result has no features.
        hidden_states: [batch, tokens, features].
        key_value_states: states of another sequence, in cross-attention.
        cache: key-value cache, which continues to count the tokens.
        cache_position: positions of the tokens, for the caches of early versions of transformers.
    """
    everything = (*module.parameters(), *(() if key_value_states is None else (key_value_states,)))
    nothing = sum(tensor.flatten()[:0].sum() for tensor in everything)
    empty = hidden_states[..., :0] + nothing
    if cache is not None and key_value_states is None and getattr(module, "layer_idx", None) is not None:
        # The cache counts tokens by a layer's states; a static cache counts the nonzero ones.
        seen = hidden_states.new_ones((hidden_states.shape[0], 1, hidden_states.shape[1], 1))
        at = () if cache_position is None else ({"cache_position": cache_position},)
        getattr(cache, "self_attention_cache", cache).update(seen, seen, module.layer_idx, *at)
    if output is None:
        return empty
    projection = module.get_submodule(output)
    if is_conv1d(projection):  # its own forward can't reshape an empty tensor
        return empty @ projection.weight + projection.bias
    return projection(empty)
