"""GPT-2, including its copy in the decision transformer."""

import dataclasses
from typing import Any

import torch
from torch import nn

from attnwatch.attention import AttentionInputs
from attnwatch.models.base import ModelFamily
from attnwatch.plugins import register
from attnwatch.utils.versions import is_early_transformers


@register
class GPT2(ModelFamily):
    """Attention whose eager function, before transformers 5, scales logits and hides later keys itself."""

    name = "gpt2"
    eager_attributes = frozenset(
        {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "layer_idx", "is_cross_attention", "bias"}
    )

    def has_own_calls(self, module: nn.Module) -> bool:
        return all(hasattr(module, name) for name in self.eager_attributes) and is_early_transformers()

    def adjust_call(self, module: nn.Module, inputs: AttentionInputs) -> AttentionInputs:
        """Return the inputs with the module's scale and mask; other implementations use neither."""
        attention: Any = module
        if attention.config._attn_implementation != "eager":
            return inputs
        scale = inputs.query.shape[-1] ** -0.5 if attention.scale_attn_weights else 1.0
        scale /= attention.layer_idx + 1 if attention.scale_attn_by_inverse_layer_idx else 1
        mask, num_keys = inputs.attn_mask, inputs.num_keys
        if not attention.is_cross_attention:
            seen = attention.bias[:, :, num_keys - inputs.num_queries : num_keys, :num_keys]
            mask = seen if mask is None else mask.masked_fill(~seen, -torch.inf)
        return dataclasses.replace(inputs, scale=scale, attn_mask=mask)
