"""Modules that call `scaled_dot_product_attention`, and `torch.nn.MultiheadAttention`.

A hook on the module says whose call comes next; the patched function reads it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import has_torch_function

from attnwatch.capture.delivery import Reading, begin, deliver, in_backward, site_id
from attnwatch.capture.patching import replace, shared_patch
from attnwatch.capture.sites import SDPA, Site, SiteKind
from attnwatch.metrics import AttentionInputs

# The modules in whose forward the program is now, innermost last: (site number or None where the module is not
# watched here, queries and keys are the same tokens).
_entered: list[tuple[int | None, bool]] = []


@contextlib.contextmanager
def patched_functional(sites: Iterable[Site], others: Iterable[Site] = ()) -> Iterator[None]:
    """While it is open, calls of scaled_dot_product_attention inside the sites' modules are delivered first.

    Args:
        sites: functional and multihead ones.
        others: sites whose calls are not delivered from here, and do not belong to a site around them either.
    """
    bindings = [(vars(F), "scaled_dot_product_attention"), *(binding for site in sites for binding in site.bindings)]
    with contextlib.ExitStack() as patches:
        for site in (*sites, *others):
            patches.enter_context(_hooked(site.module, *_HOOKS.get(site.kind, (_enter_other, _leave_other))))
        for namespace, name in bindings:
            patches.enter_context(shared_patch((id(namespace), name), partial(replace, namespace, name, _watched_sdpa)))
        yield


def _hooked(module: nn.Module, enter: Callable, leave: Callable) -> contextlib.AbstractContextManager:
    """Once, however many captures watch the module."""

    def put_hooks() -> Callable[[], None]:
        handles = [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
        return lambda: [handle.remove() for handle in handles] and None

    return shared_patch((id(module), enter), put_hooks)


def forget_entered() -> None:
    """A forward that raised never left its module."""
    _entered.clear()


def _watched_sdpa(original):
    @wraps(SDPA)
    def scaled_dot_product_attention(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):
        call = partial(original, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if has_torch_function((query, key, value, attn_mask)):
            call = partial(_call_with_torch_as_it_was, call)
        number, same_tokens = _entered[-1] if _entered else (None, False)
        if number is None:
            return call()
        deliver(number, _read_sdpa, query, key, attn_mask, is_causal, scale, same_tokens)
        _push(None, same_tokens=False)  # somebody else's patch may lead to an earlier one of ours
        try:
            return call()
        finally:
            _pop(None)

    return scaled_dot_product_attention


def _call_with_torch_as_it_was(call: Callable[[], Tensor]) -> Tensor:
    """Tensor subclasses with an attention of their own know the function by comparing it with torch's."""
    patched = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = SDPA
    try:
        return call()
    finally:
        F.scaled_dot_product_attention = patched


def _read_sdpa(query: Tensor, key: Tensor, attn_mask, is_causal: bool, scale, same_tokens: bool) -> Reading:
    if query.ndim != 4:
        return (
            f"query has {query.ndim} dimensions, so its heads can't be told apart; "
            "call scaled_dot_product_attention with [batch, heads, tokens, head_dim]"
        )
    if attn_mask is not None and type(attn_mask) is not Tensor:
        attn_mask = _with_values(attn_mask, query.device)
    return AttentionInputs(query, key, attn_mask=attn_mask, is_causal=is_causal, scale=scale, has_positions=same_tokens)


def _with_values(mask: Tensor, device: torch.device) -> Tensor:
    """torch's own causal masks are tensors whose values mean nothing."""
    from torch.nn.attention.bias import CausalBias, CausalVariant  # here, because it takes a second

    if not isinstance(mask, CausalBias):
        return mask
    offset = mask.seq_len_kv - mask.seq_len_q if mask.variant is CausalVariant.LOWER_RIGHT else 0
    return torch.ones(mask.seq_len_q, mask.seq_len_kv, dtype=torch.bool, device=device).tril(offset)


def _enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
    number = site_id(module)
    begin(number)
    _push(number, same_tokens=True)


def _leave(module: nn.Module, args: tuple, output) -> None:
    _pop(site_id(module))


def _enter_other(module: nn.Module, args: tuple, kwargs: dict) -> None:
    _push(None, same_tokens=False)


def _leave_other(module: nn.Module, args: tuple, output) -> None:
    _pop(None)


def _push(number: int | None, *, same_tokens: bool) -> None:
    if torch.compiler.is_compiling() or not in_backward():
        _entered.append((number, same_tokens))


def _pop(number: int | None) -> None:
    if _entered and _entered[-1][0] == number:
        _entered.pop()


_MULTIHEAD_ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")


def _enter_multihead(module: nn.MultiheadAttention, args: tuple, kwargs: dict) -> None:
    number = site_id(module)
    begin(number)
    if number is None:
        _push(None, same_tokens=False)
        return
    if torch.compiler.is_compiling():  # PyTorch keeps the whole function opaque there
        deliver(number, lambda: "torch.nn.MultiheadAttention inside torch.compile is not observed; compile around it")
        _push(None, same_tokens=False)
        return
    given = {**dict(zip(_MULTIHEAD_ARGUMENTS, args, strict=False)), **kwargs}
    same_tokens = given["query"] is given["key"]
    _push(number, same_tokens=same_tokens)
    if given.get("need_weights", True):
        # PyTorch multiplies the matrices itself then, so there is no call to see: project once more.
        deliver(number, _read_multihead, module, given, same_tokens)


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


# Of the sites whose calls are delivered from here, watched or not.
_HOOKS = {SiteKind.FUNCTIONAL: (_enter, _leave), SiteKind.MULTIHEAD: (_enter_multihead, _leave)}
