"""T5, whose layers share the relative position bias computed by the first layer."""

from typing import Any

from torch import Tensor, nn

from attnwatch.capture import kept_heads
from attnwatch.heads.forwards import cache_in, forward_without_heads
from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily
from attnwatch.models.transformers import fitted_layout, takes
from attnwatch.plugins import register


@register
class T5(ModelFamily):
    """T5 and related models. The table of positions stays whole, because layers may have lost different heads."""

    name = "t5"

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        layout = fitted_layout(module, _LAYOUT)
        return layout if layout is not None and takes(module, "position_bias") else None


def t5_forward(
    module: Any,
    hidden_states: Tensor,
    mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    position_bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute T5's attention. Position biases, passed in and returned, cover all heads of the unpruned module."""
    cache = args[0] if args else cache_in(kwargs)
    if position_bias is None:
        position_bias = _position_bias(module, hidden_states, key_value_states, cache)
    own = position_bias if position_bias.shape[1] == 1 else position_bias[:, kept_heads(module)]
    if module.n_heads == 0:
        output = forward_without_heads(module, "o", hidden_states, key_value_states, cache)
        return output, position_bias, None
    output, _, weights = type(module).forward(module, hidden_states, mask, key_value_states, own, *args, **kwargs)
    return output, position_bias, weights


def _position_bias(module: Any, hidden_states: Tensor, key_value_states: Tensor | None, cache: Any) -> Tensor:
    past, queries = 0, hidden_states.shape[1]
    keys = queries if key_value_states is None else key_value_states.shape[1]
    if cache is not None and key_value_states is None:
        past = cache.get_seq_length(module.layer_idx)
        keys, _ = cache.get_mask_sizes(queries, module.layer_idx)
    if module.has_relative_attention_bias:
        return module.compute_bias(queries, keys, device=hidden_states.device, past_seen_tokens=past)
    return hidden_states.new_zeros((1, 1, queries, keys))


_LAYOUT = HeadLayout(
    {"q": "q", "k": "k", "v": "v"},
    output="o",
    whole=("relative_attention_bias",),
    forward=t5_forward,
    returns=None,
)
