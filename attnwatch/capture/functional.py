"""Modules that call `scaled_dot_product_attention`.

A hook on the module says whose call comes next; the patched function reads it.
"""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import has_torch_function

from attnwatch.attention import AttentionInputs
from attnwatch.capture import entered, looking
from attnwatch.capture.delivery import Reading, begin, deliver, in_backward, is_armed, site_id
from attnwatch.capture.entered import Entry
from attnwatch.capture.multihead import enter_multihead
from attnwatch.capture.patching import StandIn, replace, shared_patch
from attnwatch.capture.reading import SDPA
from attnwatch.capture.sites import Site, SiteKind, is_of_torch
from attnwatch.capture.subclasses import call_of_subclasses, patch_biases
from attnwatch.utils.hooks import put


@contextlib.contextmanager
def patched_functional(sites: Iterable[Site], others: Iterable[Site] = ()) -> Iterator[None]:
    """While it is open, calls of scaled_dot_product_attention inside the sites' modules are delivered first.

    Args:
        sites: functional and multihead ones.
        others: sites whose calls are not delivered from here, and do not belong to a site around them either.
    """
    sites = list(sites)
    bindings = [(vars(F), "scaled_dot_product_attention"), *(binding for site in sites for binding in site.bindings)]
    with contextlib.ExitStack() as patches:
        for site in sites:
            patches.enter_context(_hooked(site.module, *_HOOKS[site.kind]))
            if site.is_hidden and not looking.keeps_fast_paths(site.module):
                patches.enter_context(_hooked(site.module, _begin_to_see, _end_to_see))
        for site in others:
            patches.enter_context(_hooked(site.module, *_HOOKS.get(site.kind, (_enter_other, _leave))))
        if any(site.is_hidden for site in sites):
            patches.enter_context(shared_patch("torch.nn.attention.bias", patch_biases))
        for namespace, name in bindings:
            patches.enter_context(shared_patch((id(namespace), name), partial(replace, namespace, name, _watched_sdpa)))
        yield


def _hooked(module: nn.Module, enter: Callable, leave: Callable) -> contextlib.AbstractContextManager:
    """Once, however many captures watch the module."""

    def put_hooks() -> Callable[[], None]:
        handles = [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, always_call=True),  # also where the forward raises
        ]
        return put(module, handles=handles)

    return shared_patch((id(module), enter), put_hooks)


def forget_interrupted() -> None:
    """Forwards that were interrupted never left their modules."""
    entered.forget()
    looking.forget()


@contextlib.contextmanager
def looking_for_sites(finder: looking.Finder, *, by_any_reference: bool) -> Iterator[None]:
    """While it is open, modules that call scaled_dot_product_attention in this thread are shown to `finder`.

    Args:
        finder: what looks for them.
        by_any_reference: also those whose reference to the function can't be patched.
    """
    looking.begin_to_look(finder)
    if by_any_reference:
        looking.see_every_call(finder, _call_of_the_function)
    try:
        yield
    finally:
        looking.see_no_more(finder)
        looking.end_to_look(finder)


def _watched_sdpa(original):
    def scaled_dot_product_attention(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):
        given = (query, key, value, attn_mask, dropout_p, is_causal), {"scale": scale, "enable_gqa": enable_gqa}
        call = partial(original, *given[0], **given[1])
        if has_torch_function((query, key, value, attn_mask)):
            call = partial(call_of_subclasses, call, *given)
        entry = _owner(by_name=True)
        if entry is not None and entry.number is not None:
            deliver(entry.number, _read_sdpa, query, key, attn_mask, is_causal, scale, entry)
        elif not looking.sees_every_call():
            return call()
        return _unseen(call)

    return StandIn(SDPA, scaled_dot_product_attention)


def _call_of_the_function(function, *args, **kwargs):
    """A call that came through another reference than the patched ones."""
    entry = _owner(by_name=False)
    if entry is not None and entry.number is not None:
        query, key, attn_mask, is_causal, scale = _what_is_read(*args, **kwargs)
        deliver(entry.number, _read_sdpa, query, key, attn_mask, is_causal, scale, entry)
    return call_of_subclasses(partial(function, *args, **kwargs), args, kwargs)


def _what_is_read(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    return query, key, attn_mask, is_causal, scale


def _unseen(call: Callable[[], Tensor]) -> Tensor:
    """The call of what is patched leads to the function itself, and maybe to an earlier patch of it: once is enough."""
    entered.enter(_DONE)
    try:
        return call()
    finally:
        entered.leave(_DONE.module)


_DONE = Entry(None, None)


def _owner(*, by_name: bool) -> Entry | None:
    """The forward that the call belongs to."""
    entry = entered.innermost()
    if torch.compiler.is_compiling() or not looking.finders() or entry is _DONE or in_backward():
        return entry
    called = looking.called_module()
    if called is None or is_of_torch(called[0]):
        return entry
    module, given = called
    is_site = [finder.find(module, by_name=by_name) for finder in looking.finders()]
    if not any(is_site) or (entry is not None and entry.module is module and entry.number is not None):
        return entry
    return Entry(module, site_id(module), same_tokens=True, given=given)


def _read_sdpa(query: Tensor, key: Tensor, attn_mask, is_causal: bool, scale, entry: Entry) -> Reading:
    if query.ndim != 4:
        return (
            f"query has {query.ndim} dimensions, so its heads can't be told apart; "
            "call scaled_dot_product_attention with [batch, heads, tokens, head_dim]"
        )
    if attn_mask is not None and type(attn_mask) is not Tensor:
        attn_mask = _with_values(attn_mask, query.device)
    same_tokens = entry.same_tokens and not _attends_to_context(entry, key)
    return AttentionInputs(query, key, attn_mask=attn_mask, is_causal=is_causal, scale=scale, has_positions=same_tokens)


# What modules call the tokens that others attend to.
_CONTEXT = re.compile(r"context|encoder|cross|memory|cond|source|key_value|^kv")


def _attends_to_context(entry: Entry, key: Tensor) -> bool:
    """Whether the keys are as many as other tokens that the forward was given beside its own: cross-attention.

    In joint attention, keys are those and the module's own.
    """
    if entry.given is None:
        return False
    args, kwargs = entry.given
    names = inspect.signature(entry.module.forward).parameters
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and value.ndim >= 3}
    own = next(iter(tensors.values()), None)
    return any(
        value is not own and value.shape[1] == key.shape[-2] and value.is_floating_point()
        for name, value in tensors.items()
        if _CONTEXT.search(name) and "mask" not in name
    )


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
    given = None if torch.compiler.is_compiling() else (args, kwargs)
    entered.enter(Entry(module, number, same_tokens=True, given=given))


def _leave(module: nn.Module, args: tuple, output) -> None:
    entered.leave(module)


def _enter_other(module: nn.Module, args: tuple, kwargs: dict) -> None:
    entered.enter(Entry(module, None))


def _begin_to_see(module: nn.Module, args: tuple, kwargs: dict) -> None:
    if not torch.compiler.is_compiling() and not in_backward() and is_armed(site_id(module)):
        looking.see_every_call(module, _call_of_the_function)


def _end_to_see(module: nn.Module, args: tuple, output) -> None:
    if not torch.compiler.is_compiling() and not in_backward():
        looking.see_no_more(module)


# Of the sites whose calls are delivered from here, watched or not.
_HOOKS = {SiteKind.FUNCTIONAL: (_enter, _leave), SiteKind.MULTIHEAD: (enter_multihead, _leave)}
