"""`torch.nn.MultiheadAttention`, which calls `scaled_dot_product_attention` or multiplies the matrices itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture import entered
from attnwatch.capture.delivery import Reading, begin, deliver, site_id
from attnwatch.capture.entered import Entry

_MULTIHEAD_ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")


def enter_multihead(module: nn.MultiheadAttention, args: tuple, kwargs: dict) -> None:
    """Hook before the forward: whose calls come next, and what it computes without any call."""
    number = site_id(module)
    begin(number)
    if number is None:
        entered.enter(Entry(module, None))
        return
    if torch.compiler.is_compiling():  # PyTorch keeps the whole function opaque there
        deliver(number, lambda: "torch.nn.MultiheadAttention inside torch.compile is not observed; compile around it")
        entered.enter(Entry(module, None))
        return
    given = {**dict(zip(_MULTIHEAD_ARGUMENTS, args, strict=False)), **kwargs}
    same_tokens = given["query"] is given["key"]
    entered.enter(Entry(module, number, same_tokens))
    if given.get("need_weights", True):
        # PyTorch multiplies the matrices itself then, so there is no call to see: project once more.
        sources = (given["query"], given["key"], *module.parameters())
        deliver(number, _read_multihead, module, given, same_tokens, sources=sources)


@torch.no_grad()
def _read_multihead(module: nn.MultiheadAttention, given: dict, same_tokens: bool) -> Reading:
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
    return AttentionInputs(
        query,
        key,
        attn_mask=_multihead_mask(module, given.get("attn_mask"), query.shape[0]),
        key_padding=None if given.get("key_padding_mask") is None else _shown(given["key_padding_mask"], query),
        has_positions=same_tokens,
    )


def _project(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """[tokens, batch, embed] to [batch, heads, tokens, head_dim]."""
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


def _shown(padding: Tensor, query: Tensor) -> Tensor:
    """`key_padding_mask` marks what is hidden: bool [batch, keys], True where the key is shown."""
    padding = padding.reshape(query.shape[0], -1)
    return ~padding if padding.dtype == torch.bool else padding == 0


def _multihead_mask(module: nn.MultiheadAttention, mask: Tensor | None, batch_size: int) -> Tensor | None:
    """`attn_mask` marks what is hidden where bool: as scaled_dot_product_attention wants it, up to 4D."""
    if mask is None:
        return None
    if mask.ndim == 3 and mask.shape[0] != 1:
        mask = mask.reshape(batch_size, module.num_heads, *mask.shape[1:])
    return ~mask if mask.dtype == torch.bool else mask
