"""Karpathy's nanoGPT, and code that copies its attention."""

from typing import Any

from torch import Tensor, nn

from attnwatch.capture import UNPRUNED_HEADS, names_in_forward
from attnwatch.heads.forwards import attend, split_heads
from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily
from attnwatch.plugins import register

_ATTRIBUTES = ("c_attn", "c_proj", "n_head", "n_embd", "dropout", "resid_dropout")
# Variants of the module (such as with rotary embeddings) have the same name but compute something else.
_NAMES = {
    *(*_ATTRIBUTES, "attn_dropout", "flash", "bias", "training"),
    *("torch", "nn", "F", "functional", "scaled_dot_product_attention", "softmax", "math", "sqrt", "masked_fill"),
    *("size", "split", "view", "reshape", "transpose", "contiguous", "float"),
}


@register
class NanoGPT(ModelFamily):
    """Attention modules called `CausalSelfAttention` whose code uses only names from nanoGPT's."""

    name = "nanogpt"

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        if type(module).__name__ != "CausalSelfAttention":
            return None
        has_all = all(getattr(module, name, None) is not None for name in _ATTRIBUTES)
        names = names_in_forward(type(module))
        return _LAYOUT if has_all and names and names <= _NAMES else None


def nanogpt_forward(module: Any, x: Tensor) -> Tensor:
    """Compute nanoGPT's attention, whose own forward derives the width of its heads from that of the model."""
    q, k, v = (split_heads(part, head_dim_of(module)) for part in module.c_attn(x).chunk(3, dim=-1))
    mixed = attend(q, k, v, None, module.dropout if module.training else 0.0, is_causal=True)
    return module.resid_dropout(module.c_proj(mixed.transpose(1, 2).flatten(2)))


def head_dim_of(module: Any) -> int:
    """Return the number of features of a head, which stays the same when heads are removed."""
    num_heads, *_ = getattr(module, UNPRUNED_HEADS, (module.n_head,))
    return module.n_embd // num_heads


_LAYOUT = HeadLayout(
    {"c_attn": "q|k|v"},
    output="c_proj",
    head_dim=head_dim_of,
    forward=nanogpt_forward,
    returns="output",
    after_output="resid_dropout",
)
