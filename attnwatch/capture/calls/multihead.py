"""`torch.nn.MultiheadAttention`, which calls `scaled_dot_product_attention` or multiplies the matrices itself."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture.call_owners import Args, Entry, Kwargs, enter
from attnwatch.capture.calls.base import AttentionCall
from attnwatch.capture.code_names import CodeNames
from attnwatch.capture.delivery import CallInputs, begin, deliver, site_id
from attnwatch.capture.sites import Site
from attnwatch.plugins import register

# PyTorch keeps the whole function opaque there.
_COMPILED = "torch.nn.MultiheadAttention inside torch.compile is not observed; compile around it"
_ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")


def enter_multihead(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
    """Forward pre-hook: deliver attention that is computed without a call, and own the calls that follow."""
    number = site_id(module)
    begin(number)
    if number is None or torch.compiler.is_compiling():
        if number is not None:
            deliver(number, lambda: _COMPILED)
        enter(Entry(module, None))
        return
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    same_tokens = given["query"] is given["key"]
    enter(Entry(module, number, same_tokens))
    if given.get("need_weights", True):
        # PyTorch then multiplies the matrices itself, without a call to observe: project once more.
        sources = (given["query"], given["key"], *module.parameters())
        deliver(number, _read, module, given, same_tokens, sources=sources)


@register
class MultiheadAttention(AttentionCall):
    """Modules of the class `torch.nn.MultiheadAttention`."""

    name = "multihead"
    title = "torch.nn.MultiheadAttention"
    enter = staticmethod(enter_multihead)

    def recognises(self, module: nn.Module, code: CodeNames) -> bool:
        return isinstance(module, nn.MultiheadAttention)

    def watched(self, sites: Sequence[Site]) -> contextlib.AbstractContextManager[None]:
        """See `AttentionCall.watched`. The module calls the function by its name in torch.nn.functional."""
        return self.registry["sdpa"].watched(())

    def why_silent(self, site: Site) -> str:
        if site.module.training:
            return ""
        return (
            "its forward ran without calling scaled_dot_product_attention: PyTorch's inference fast path computed it, "
            "as in eval mode without gradients; train it, or call torch.backends.mha.set_fastpath_enabled(False)"
        )


@torch.no_grad()
def _read(module: nn.MultiheadAttention, given: dict[str, Any], same_tokens: bool) -> CallInputs:
    if module.bias_k is not None or module.add_zero_attn:
        return "MultiheadAttention with add_bias_kv or add_zero_attn is read with need_weights=False only"
    query, key = given["query"], given["key"]
    if query.is_nested:
        return "nested tensors are not observed; use a padded batch"
    if query.ndim == 2:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    elif module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    query, key = _project(module, query, key)
    padding = given.get("key_padding_mask")
    return AttentionInputs(
        query,
        key,
        attn_mask=_mask(module, given.get("attn_mask"), query.shape[0]),
        key_padding=None if padding is None else _shown(padding.reshape(query.shape[0], -1)),
        has_positions=same_tokens,
    )


def _project(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Project [tokens, batch, embed] to [batch, heads, tokens, head_dim]."""
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight)
    biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    heads = []
    for tokens, weight, bias in zip((query, key), weights, biases, strict=False):
        projected = F.linear(tokens, weight, bias)
        heads.append(projected.unflatten(-1, (module.num_heads, -1)).permute(1, 2, 0, 3))
    return heads[0], heads[1]


def _shown(padding: Tensor) -> Tensor:
    """Return a mask of the visible keys, bool [batch, keys], from a mask of the hidden ones."""
    return ~padding if padding.dtype == torch.bool else padding == 0


def _mask(module: nn.MultiheadAttention, mask: Tensor | None, batch_size: int) -> Tensor | None:
    """Return `attn_mask`, up to 4D, as for scaled_dot_product_attention; if bool, the input marks hidden keys."""
    if mask is None:
        return None
    if mask.ndim == 3 and mask.shape[0] != 1:
        mask = mask.reshape(batch_size, module.num_heads, *mask.shape[1:])
    return ~mask if mask.dtype == torch.bool else mask
