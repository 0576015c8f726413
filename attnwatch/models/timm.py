"""Vision transformers from timm."""

from typing import Any

from torch import Tensor, nn

from attnwatch.capture import UNPRUNED_HEADS, kept_heads, names_in_forward
from attnwatch.heads.forwards import attend, split_heads
from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily, Refused
from attnwatch.plugins import register

_MODULES = ("timm.layers.attention", "timm.models.vision_transformer")


@register
class Timm(ModelFamily):
    """timm's `Attention`, gated or not, in all blocks that use it."""

    name = "timm"

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        if type(module).__name__ != "Attention" or type(module).__module__ not in _MODULES:
            return None
        if any(getattr(module, name, None) is None for name in ("qkv", "proj", "head_dim")):
            return None
        if not isinstance(getattr(module, "norm", None), nn.Identity | None):
            raise Refused("its norm covers all heads together")
        gate = {} if getattr(module, "gate", None) is None else {"gate": "q"}
        return HeadLayout(
            {"qkv": "q|k|v", **gate},
            output="proj",
            head_dim="head_dim",
            head_norms=("q_norm", "k_norm"),
            forward=timm_forward if "attn_dim" in names_in_forward(type(module)) else early_timm_forward,
            returns="output",
            after_output="proj_drop",
        )


def timm_forward(module: nn.Module, x: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """Call the module's own forward, which only accepts a mask of its own heads."""
    return type(module).forward(module, x, _of_kept_heads(module, attn_mask), *args, **kwargs)


def early_timm_forward(module: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Compute the attention of timm versions whose own forward reshapes the mixed values to the model's width."""
    q, k, v = (split_heads(part, module.head_dim) for part in module.qkv(x).chunk(3, dim=-1))
    dropout = module.attn_drop.p if module.training else 0.0
    q, k = module.q_norm(q), module.k_norm(k)
    mixed = attend(q, k, v, _of_kept_heads(module, attn_mask), dropout, is_causal=is_causal)
    return module.proj_drop(module.proj(mixed.transpose(1, 2).flatten(2)))


def _of_kept_heads(module: nn.Module, mask: Tensor | None) -> Tensor | None:
    """Return a mask [..., heads, queries, keys] of all heads of the unpruned module, without the removed heads."""
    num_unpruned, *_ = getattr(module, UNPRUNED_HEADS, (None,))
    kept = kept_heads(module)
    if mask is None or kept is None or mask.ndim < 3 or mask.shape[-3] != num_unpruned or num_unpruned == 1:
        return mask
    return mask.index_select(-3, kept.to(mask.device))
