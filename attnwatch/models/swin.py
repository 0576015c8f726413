"""Swin, including its copies in Donut and MaskFormer."""

import dataclasses

import torch
from torch import nn

from attnwatch.attention import AttentionInputs
from attnwatch.models.base import ModelFamily
from attnwatch.plugins import register

# Masks hide keys with -100, to which position biases are added. Elsewhere, such a value is an ordinary bias.
_HIDDEN_BELOW = -50.0


@register
class Swin(ModelFamily):
    """Windows that are shifted over the image; masks hide other parts of it."""

    name = "swin"

    def has_own_calls(self, module: nn.Module) -> bool:
        return type(module).__name__.endswith(("SwinAttention", "SwinSelfAttention"))

    def adjust_call(self, module: nn.Module, inputs: AttentionInputs) -> AttentionInputs:
        """Return the inputs with masks that hide keys completely."""
        mask = inputs.attn_mask
        if mask is None or not mask.is_floating_point():
            return inputs
        return dataclasses.replace(inputs, attn_mask=mask.masked_fill(mask < _HIDDEN_BELOW, -torch.inf))
