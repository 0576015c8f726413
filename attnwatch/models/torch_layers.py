"""Layers of torch: `nn.TransformerEncoderLayer`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from attnwatch.models.base import ModelFamily
from attnwatch.plugins import register
from attnwatch.tokens.axes import take
from attnwatch.tokens.layouts import TokenLayout


@register
class TorchLayers(ModelFamily):
    """Encoder layers of torch, as long as their forward is torch's own."""

    name = "torch_layers"

    def token_layout(self, layer: nn.Module) -> TokenLayout | None:
        kind = nn.TransformerEncoderLayer
        return _LAYOUT if isinstance(layer, kind) and type(layer).forward is kind.forward else None


def _route_mask(mask: Tensor, kept: Tensor, layer: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
    """Route `src_mask` [tokens, tokens] or [batch · heads, tokens, tokens]."""
    if mask.ndim == 2:
        if arguments.get("is_causal"):  # kept in their order, earlier tokens are the same ones
            return mask[: kept.shape[1], : kept.shape[1]]
        return take(mask, "tokens tokens", kept).repeat_interleave(layer.self_attn.num_heads, 0)
    heads = mask.unflatten(0, (len(kept), -1))
    return take(heads, "batch heads tokens tokens", kept).flatten(0, 1)


_LAYOUT = TokenLayout(
    "src",
    routed={"src_mask": _route_mask, "src_key_padding_mask": "batch tokens"},
    whole=("is_causal",),
    batch_first=lambda layer: layer.self_attn.batch_first,
)
