"""Calls of transformers models through the attention interface, with any implementation."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture.calls.base import AttentionCall
from attnwatch.capture.code_names import CodeNames
from attnwatch.capture.delivery import CallInputs, deliver, site_id
from attnwatch.capture.keywords import ignores
from attnwatch.capture.patching import replace, shared_patch
from attnwatch.capture.sites import Site
from attnwatch.models import ModelFamily
from attnwatch.plugins import register
from attnwatch.utils.forwards import forward_function, function_of
from attnwatch.utils.versions import is_early_transformers, warn_if_untested

# Arguments with which flash attention finds the documents of a packed batch; it needs all of them.
_DOCUMENT_BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# Logits of a learned sink key for each head. Nine families pass them.
_LEARNED_SINK = "s_aux"
# Tensors whose effect on the logits is known in all attention functions that name them.
_UNDERSTOOD = {"position_ids", "cache_position", "position_bias", _LEARNED_SINK, *_DOCUMENT_BOUNDARIES}

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
# Global that early versions of transformers call for eager attention; later versions look it up.
_EAGER = "eager_attention_forward"
# Attributes of a module that eager functions of early versions read without an effect on the weights. The type of
# position embedding has none either, unless there is a distance embedding. Sinks are also passed to the function.
_WITHOUT_EFFECT = {
    *("num_key_value_groups", "head_dim", "dropout", "attention_dropout", "attn_dropout", "training"),
    *("position_embedding_type", "max_position_embeddings", "sinks"),
}


@register
class TransformersInterface(AttentionCall):
    """Modules of transformers that look up their attention function."""

    name = "transformers_interface"
    title = "transformers' attention interface"

    def recognises(self, module: nn.Module, code: CodeNames) -> bool:
        return _INTERFACE in code.names

    @contextlib.contextmanager
    def watched(self, sites: Sequence[Site]) -> Iterator[None]:
        """See `AttentionCall.watched`. Functions that are looked up in the context deliver their calls first."""
        warn_if_untested("transformers", sites[0].module)
        with contextlib.ExitStack() as patches:
            patches.enter_context(shared_patch("transformers", _replace_lookup))
            if is_early_transformers():
                forwards = filter(None, (forward_function(type(site.module)) for site in sites))
                namespaces = [forward.__globals__ for forward in forwards]
                for namespace in {id(each): each for each in namespaces if _EAGER in each}.values():
                    name = f"eager attention of {namespace['__name__']}"
                    patches.enter_context(shared_patch(name, functools.partial(_replace_eager, namespace)))
            yield


def attention_functions(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """Yield the functions that the modules inside a transformers module look up with their current configs."""
    for part in module.modules():
        namespace = getattr(sys.modules.get(type(part).__module__), "__dict__", {})
        config = getattr(part, "config", None)
        if _INTERFACE in namespace and config is not None:
            implementation = getattr(config, "_attn_implementation", None) or "eager"
            eager = namespace.get(_EAGER)
            function = eager if implementation == "eager" else namespace[_INTERFACE].get(implementation, eager)
            if function is not None:
                yield function


def _replace_lookup() -> Callable[[], None]:
    from transformers import AttentionInterface as interface

    lookup = "__getitem__" if is_early_transformers() else "get_interface"
    original = getattr(interface, lookup)

    @functools.wraps(original)
    def look_up(self: Any, implementation: str, *default: Callable[..., Any]) -> Callable[..., Any]:
        return _watched(original(self, implementation, *default), implementation or "eager", ())

    setattr(interface, lookup, look_up)

    def put_back() -> None:
        if getattr(interface, lookup) is look_up:
            if original is getattr(super(interface, interface), lookup, None):
                delattr(interface, lookup)
            else:
                setattr(interface, lookup, original)

    return put_back


def _replace_eager(namespace: dict[str, Any]) -> Callable[[], None]:
    def wrap(eager: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(eager)(_watched(eager, "eager", _attributes_read_by(eager)))

    return replace(namespace, _EAGER, wrap)


def _attributes_read_by(eager: Callable[..., Any]) -> tuple[str, ...]:
    """Return names in the code of an eager function that may be module attributes with an unknown effect."""
    function = function_of(eager)
    names = dict.fromkeys(() if function is None else function.__code__.co_names)
    known = [family.eager_attributes for family in ModelFamily.registry.values()]
    accounted = _WITHOUT_EFFECT.union(*(attributes for attributes in known if attributes <= names.keys()))
    return tuple(name for name in names if name not in accounted and not hasattr(nn.Module, name))


def _watched(function: Callable[..., Any], implementation: str, attributes: tuple[str, ...]) -> Callable[..., Any]:
    """Return a function that delivers its calls first. For `attributes` see `_attributes_read_by`."""

    def watched(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        number = site_id(module)
        if number is not None:
            call = (implementation, module, query, key, attention_mask, kwargs, function)
            deliver(number, _read, attributes, bool(args), call)
        return function(module, query, key, value, attention_mask, *args, **kwargs)

    if not torch.compiler.is_compiling():
        vars(watched)["__wrapped__"] = function
    return watched


def _read(attributes: tuple[str, ...], has_positional: bool, call: tuple[Any, ...]) -> CallInputs:
    module = call[1]
    unknown = [name for name in attributes if hasattr(module, name)]
    if unknown:
        return (
            f"its eager attention reads {', '.join(unknown)} of the module, whose effect is unknown; use "
            "attn_implementation='sdpa'"
        )
    if has_positional:
        return "the attention function is called with positional arguments whose meaning is unknown; use keywords"
    return read_call(*call)


def read_call(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Any,
    kwargs: dict[str, Any],
    function: Callable[..., Any] | None = None,
) -> CallInputs:
    """Return the attention inputs that the function `implementation` computes from these arguments.

    Args:
        implementation: name as in a config's `_attn_implementation`.
        module: module that calls the function.
        query: queries [batch, heads, queries, head_dim].
        key: keys [batch, key heads, keys, head_dim].
        attention_mask: None, a 4D tensor, a 2D tensor [batch, keys] (flash), or a BlockMask (flex).
        kwargs: further arguments from the model (scaling, dropout, softcap, …).
        function: the attention function. Arguments that it ignores have no effect; None means that it uses all of
            `kwargs`.
    """
    kwargs = _with_effect(kwargs, function)
    reason = _why_not(query, kwargs)
    if reason:
        return reason
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    shared: dict[str, Any] = {
        "query": query,
        "key": key,
        "scale": kwargs.get("scaling"),
        "softcap": None if implementation == "sdpa" else kwargs.get("softcap"),  # sdpa rejects or ignores it
        "position_bias": kwargs.get("position_bias"),
        "learned_sink": None if implementation == "sdpa" else kwargs.get(_LEARNED_SINK),  # sdpa ignores it
    }
    if implementation == "eager":
        if attention_mask is not None and attention_mask.shape[-1] == 1 != key.shape[2]:
            attention_mask = None  # no effect; before transformers 5, this is a head mask, a factor of the weights
        return AttentionInputs(**shared, attn_mask=_cropped(attention_mask, key))
    if implementation == "sdpa":
        is_causal = query.shape[2] > 1 and attention_mask is None and is_causal
        return AttentionInputs(**shared, attn_mask=attention_mask, is_causal=is_causal)
    if implementation == "flex_attention":
        if isinstance(attention_mask, Tensor | None):
            return AttentionInputs(**shared, attn_mask=_cropped(attention_mask, key))
        return AttentionInputs(**shared, mask_mod=attention_mask.mask_mod)
    if "flash" in implementation:
        is_causal, sliding_window = is_causal and query.shape[2] > 1, kwargs.get("sliding_window")
        if query.shape[2] != key.shape[2] and (is_causal or sliding_window is not None):
            return (
                "flash attention with fewer queries than keys (a key-value cache) is not observed; set use_cache=False"
            )
        return AttentionInputs(
            **shared,
            is_causal=is_causal,
            sliding_window=sliding_window,
            key_padding=None if attention_mask is None else attention_mask.bool(),
            segments=_segments(attention_mask, key, kwargs),
        )
    return f"the attention implementation {implementation!r} is unknown; use sdpa, eager, flex or flash attention"


def _why_not(query: Tensor, kwargs: dict[str, Any]) -> str:
    sink = kwargs.get(_LEARNED_SINK)
    if sink is not None and sink.shape != (query.shape[1],):
        return f"its attention-sink logits ({_LEARNED_SINK}) have shape {list(sink.shape)}, not one value per head"
    if kwargs.get("cache") is not None:
        return "a paged key-value cache is in use, so the keys are not the ones passed to the function"
    unknown = sorted(name for name, value in kwargs.items() if isinstance(value, Tensor) and name not in _UNDERSTOOD)
    if unknown:
        return f"the attention function receives a tensor whose effect is unknown: {', '.join(unknown)}"
    return ""


def _with_effect(kwargs: dict[str, Any], function: Callable[..., Any] | None) -> dict[str, Any]:
    """Return the arguments that the function uses, and learned sinks, which some functions take from the module."""
    if function is None:
        return kwargs
    asked = [name for name, value in kwargs.items() if isinstance(value, Tensor) or name == "softcap"]
    ignored = [name for name in asked if name != _LEARNED_SINK and ignores(function, name)]
    return {name: value for name, value in kwargs.items() if name not in ignored}


def _cropped(mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Return a mask, possibly as long as a static cache, cut to the keys as attention functions do."""
    return None if mask is None else mask[..., : key.shape[2]]


def _segments(attention_mask: Tensor | None, key: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """Return the documents of a packed batch, which flash attention finds by boundaries or restarting positions."""
    if attention_mask is not None:
        return None
    batch_size, num_keys = key.shape[0], key.shape[2]
    if all(kwargs.get(name) is not None for name in _DOCUMENT_BOUNDARIES):
        boundaries = kwargs["cu_seq_lens_k"]
        tokens = torch.arange(batch_size * num_keys, device=key.device, dtype=boundaries.dtype)
        return torch.bucketize(tokens, boundaries[1:], right=True).view(batch_size, num_keys)
    positions: Tensor | None = kwargs.get("position_ids")
    if positions is not None and batch_size == 1 and positions.shape == (1, num_keys):
        return (positions == positions.min()).cumsum(-1)
    return None
