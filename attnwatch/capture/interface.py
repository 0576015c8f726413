"""transformers models: every call that goes through the attention interface, whatever implementation is set."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture import transformers4
from attnwatch.capture.delivery import Reading, deliver, site_id
from attnwatch.capture.keywords import ignores
from attnwatch.capture.patching import replace, shared_patch

# Arguments with which flash attention is told of the documents in a packed batch; it needs all of them.
_DOCUMENT_BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# The logits of a key that each head has learned to look at where there is nothing to see (gpt-oss).
_LEARNED_SINK = "s_aux"
# Tensors whose effect on the logits is known, in each of the attention functions that names them.
_UNDERSTOOD = {"position_ids", "cache_position", "position_bias", _LEARNED_SINK, *_DOCUMENT_BOUNDARIES}

# Transformers before 5 look functions up like entries of a dict, and call this global where attention is eager.
_LOOKUPS = ("get_interface", "__getitem__")
_EAGER = "eager_attention_forward"
_INTERFACE = "ALL_ATTENTION_FUNCTIONS"


@contextlib.contextmanager
def patched_interface(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While it is open, attention functions that these transformers modules look up deliver their calls first."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(shared_patch("transformers", _replace_lookup))
        if _is_before_5():
            namespaces = [inspect.unwrap(type(module).forward).__globals__ for module in modules]
            for namespace in {id(each): each for each in namespaces if _EAGER in each}.values():
                patches.enter_context(shared_patch(f"eager attention of {namespace['__name__']}", _replaced(namespace)))
        yield


def _replace_lookup() -> Callable[[], None]:
    interface = _interface()
    lookup = _lookup_of(interface)
    original = getattr(interface, lookup)
    read = functools.partial(_read_before_5, ()) if _is_before_5() else _read

    @functools.wraps(original)
    def look_up(self, implementation: str, *default: Callable) -> Callable:
        return _watched(original(self, implementation, *default), implementation or "eager", read)

    setattr(interface, lookup, look_up)

    def put_back() -> None:
        if getattr(interface, lookup) is look_up:
            if original is getattr(super(interface, interface), lookup, None):
                delattr(interface, lookup)
            else:
                setattr(interface, lookup, original)

    return put_back


def attention_functions(module: nn.Module) -> Iterator[Callable]:
    """What the modules in a module of transformers call by the attention interface, as their configs are now."""
    for part in module.modules():
        namespace = getattr(sys.modules.get(type(part).__module__), "__dict__", {})
        config = getattr(part, "config", None)
        if _INTERFACE in namespace and config is not None:
            implementation = getattr(config, "_attn_implementation", None) or "eager"
            eager = namespace.get(_EAGER)
            function = eager if implementation == "eager" else namespace[_INTERFACE].get(implementation, eager)
            if function is not None:
                yield function


def _interface() -> type:
    from transformers.modeling_utils import AttentionInterface

    return AttentionInterface


def _lookup_of(interface: type) -> str:
    return next(name for name in _LOOKUPS if hasattr(interface, name))


def _is_before_5() -> bool:
    return _lookup_of(_interface()) != _LOOKUPS[0]


def _replaced(namespace: dict[str, Any]) -> Callable[[], Callable[[], None]]:
    def wrap(eager: Callable) -> Callable:
        read = functools.partial(_read_before_5, transformers4.names_read_by(eager))
        return functools.wraps(eager)(_watched(eager, "eager", read))

    return lambda: replace(namespace, _EAGER, wrap)


def _watched(function: Callable, implementation: str, read: Callable[..., Reading]) -> Callable:
    def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, *args, **kwargs):
        number = site_id(module)
        if number is not None:
            reader = _read_positional if args else read
            deliver(number, reader, implementation, module, query, key, attention_mask, kwargs, function)
        return function(module, query, key, value, attention_mask, *args, **kwargs)

    if not torch.compiler.is_compiling():
        watched.__wrapped__ = function
    return watched


def _read_positional(*_) -> Reading:
    return "the attention function is called with positional arguments whose meaning is not known; use keywords"


def _read(*call) -> Reading:
    return read_call(*call)


def _read_before_5(
    names: tuple[str, ...], implementation, module, query, key, attention_mask, kwargs, function
) -> Reading:
    reason = transformers4.refusal(module, names)
    if reason:
        return reason
    if implementation == "eager":
        attention_mask, kwargs = transformers4.eager_arguments(module, query, key, attention_mask, kwargs)
    return read_call(implementation, module, query, key, attention_mask, kwargs, function)


def read_call(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask,
    kwargs: dict,
    function: Callable | None = None,
) -> Reading:
    """What the attention function `implementation` computes from these arguments.

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, key heads, keys, head_dim].
        attention_mask: None, a 4D tensor, a 2D tensor [batch, keys] (flash), or a BlockMask (flex).
        kwargs: what the model passed besides (scaling, dropout, softcap, …).
        function: the attention function; what it does not look at has no effect. None: it looks at all of `kwargs`.
    """
    kwargs = _with_effect(kwargs, function)
    reason = _refusal(module, query, kwargs)
    if reason:
        return reason
    if type(module).__name__.endswith(_HIDE_BY_A_HUNDRED) and isinstance(attention_mask, Tensor):
        attention_mask = attention_mask.masked_fill(attention_mask < _HIDDEN_BELOW, -torch.inf)
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    shared = {
        "query": query,
        "key": key,
        "scale": kwargs.get("scaling"),
        "softcap": None if implementation == "sdpa" else kwargs.get("softcap"),  # sdpa refuses it, or ignores it
        "position_bias": kwargs.get("position_bias"),
        "learned_sink": None if implementation == "sdpa" else kwargs.get(_LEARNED_SINK),  # which ignores it
    }
    if implementation == "eager":
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
    return f"the attention implementation {implementation!r} is not known; use sdpa, eager, flex or flash attention"


# Their masks hide by -100, which elsewhere is a bias as any other; biases of positions are added to it.
_HIDE_BY_A_HUNDRED = ("SwinAttention", "SwinSelfAttention")
_HIDDEN_BELOW = -50.0
# A token whose own key is hidden from it is padding; not in these.
_CHOOSE_KEYS_BY_CONTENT = ("DogeAttention",)
# What a module has that chooses its keys, takes those that an earlier layer chose, or makes one key of several, as in
# DeepSeek's sparse attention; other layers of these models have none of it.
_CHOOSERS_OF_KEYS = ("indexer", "skip_topk", "compressor")


def _chooses_keys(module: nn.Module) -> bool:
    return any(getattr(module, name, None) not in (None, False) for name in _CHOOSERS_OF_KEYS)


def _refusal(module: nn.Module, query: Tensor, kwargs: dict) -> str:
    if type(module).__name__ in _CHOOSE_KEYS_BY_CONTENT or _chooses_keys(module):
        return "which keys a token sees depends on their content, so that padding can't be told from what was left out"
    sink = kwargs.get(_LEARNED_SINK)
    if sink is not None and sink.shape != (query.shape[1],):
        return f"its attention-sink logits ({_LEARNED_SINK}) are {list(sink.shape)}, not one for each head"
    if kwargs.get("cache") is not None:
        return "a paged key-value cache is in use, so the keys are not those that were passed"
    unknown = sorted(name for name, value in kwargs.items() if isinstance(value, Tensor) and name not in _UNDERSTOOD)
    if unknown:
        return f"the attention function is given a tensor whose effect is not known: {', '.join(unknown)}"
    return ""


def _with_effect(kwargs: dict, function: Callable | None) -> dict:
    """Without what the function ignores, but for learned sinks, which some take from the module."""
    if function is None:
        return kwargs
    asked = [name for name, value in kwargs.items() if isinstance(value, Tensor) or name == "softcap"]
    ignored = [name for name in asked if name != _LEARNED_SINK and ignores(function, name)]
    return {name: value for name, value in kwargs.items() if name not in ignored}


def _cropped(mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Masks may be as long as a static cache; attention functions cut them to the keys."""
    return None if mask is None else mask[..., : key.shape[2]]


def _segments(attention_mask: Tensor | None, key: Tensor, kwargs: dict) -> Tensor | None:
    """Documents of a packed batch, as flash attention finds them: from their boundaries, or where positions restart."""
    if attention_mask is not None:
        return None
    batch_size, num_keys = key.shape[0], key.shape[2]
    if all(kwargs.get(name) is not None for name in _DOCUMENT_BOUNDARIES):
        boundaries = kwargs["cu_seq_lens_k"]
        tokens = torch.arange(batch_size * num_keys, device=key.device, dtype=boundaries.dtype)
        return torch.bucketize(tokens, boundaries[1:], right=True).view(batch_size, num_keys)
    positions = kwargs.get("position_ids")
    if positions is not None and batch_size == 1 and positions.shape == (1, num_keys):
        return (positions == positions.min()).cumsum(-1)
    return None
