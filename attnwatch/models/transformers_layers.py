"""Layers of transformers models (Llama, BERT, ViT and similar), and reasons why some need all tokens."""

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnwatch.capture import CACHES, find_sites, names_in_forward
from attnwatch.capture.keywords import is_of_transformers
from attnwatch.models.base import ModelFamily, Refused, TokenPredictions
from attnwatch.plugins import register
from attnwatch.tokens.layouts import TokenLayout
from attnwatch.utils.interception import original_class

if TYPE_CHECKING:
    from attnwatch.tokens.stacks import Stack

_LAYOUT = TokenLayout(
    "hidden_states",
    routed={
        "attention_mask": ("batch tokens", "batch heads tokens tokens"),
        "position_ids": ("batch tokens", "sections batch tokens"),
        **dict.fromkeys(
            ("position_embeddings", "position_embeddings_global", "position_embeddings_local"),
            ("batch tokens features", "sections batch tokens features"),
        ),
        "causal_attention_mask": "batch heads tokens tokens",
        "encoder_attention_mask": ("batch memory", "batch heads tokens memory"),
        "cu_seq_lens_q": "boundaries",
        "cu_seq_lens_k": "boundaries",
    },
    whole=(
        *("encoder_hidden_states", "use_cache", "max_length_q", "max_length_k", "num_items_in_batch"),
        # In transformers before 5: head masks, and positions in a cache, which is absent here.
        *("head_mask", "layer_head_mask", "cross_attn_layer_head_mask", "cache_position"),
    ),
    caches=CACHES,
)
# Parts of the names of models with one result per token.
_TOKEN_MODELS = ("LMHead", "CausalLM", "MaskedLM", "TokenClass", "QuestionAnswering")
_LANGUAGE_LOSSES = ("ForCausalLM", "ForMaskedLM")
_LAYER_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
# Models whose rotary positions are a single table [tokens, features] for all sequences.
_POSITIONS_WITHOUT_BATCH = ("dinov3_vit", "mlcd_vision_model", "sapiens2")
# Modules and parameters that depend on the distance of two tokens in the tensor.
_POSITIONS_INSIDE = re.compile(r"rotary|relative|rel_pos|alibi|distance|position", re.IGNORECASE)
# Names in attention code that numbers the tokens of the tensor; Llama 4's scales depend on these numbers.
_NUMBERING = {"arange", "floor_scale"}
_MIXING = (nn.modules.conv._ConvNd, nn.RNNBase)


@register
class TransformersLayers(ModelFamily):
    """Decoder and encoder layers of transformers, and of model code on the Hub."""

    name = "transformers_layers"

    def token_layout(self, layer: nn.Module) -> TokenLayout | None:
        if not is_of_transformers(original_class(layer)):
            return None
        named = _named_arguments(layer)
        unknown = [name for name in named if not _LAYOUT.knows(name)]
        if _LAYOUT.states in named and unknown:
            raise Refused(f"take {', '.join(unknown)}, which can't be cut to the kept tokens")
        sites = find_sites(layer) if named[:1] == [_LAYOUT.states] else []
        return _LAYOUT if sites and all(site.module is not layer for site in sites) else None

    def check_tokens(
        self, stack: "Stack", layers: tuple[nn.Module, ...], *, protect_first: int, drop_in_evaluation: bool
    ) -> None:
        model = stack.entries[0]
        if drop_in_evaluation and any(part in type(model).__name__ for part in _TOKEN_MODELS):
            raise Refused(
                "`drop_in_evaluation` is for models that read their result from the first token, but "
                f"{type(model).__name__} has a result for each token; omit it"
            )
        config: Any = getattr(model, "config", None)
        implementation = str(getattr(config, "_attn_implementation", ""))
        _check_config(config, implementation, has_starts=protect_first > 0)
        if stack.layout is not _LAYOUT:
            return
        if getattr(config, "model_type", "") in _POSITIONS_WITHOUT_BATCH:
            raise Refused(
                f"{config.model_type} has one table of positions for all sequences, but each keeps different tokens"
            )
        depth = getattr(config, "num_hidden_layers", None)
        if isinstance(depth, int) and depth > len(stack.layers):
            raise Refused(f"its {depth} layers share the weights of {len(stack.layers)}")
        for layer in layers:
            reason = _why_not(layer, implementation)
            if reason:
                raise Refused(f"layer {stack.layers.index(layer)}: {reason}")

    def is_model(self, module: nn.Module) -> bool:
        return any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__)

    def argument_prefix(self, model: nn.Module, stack: str) -> str:
        is_of_two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return "decoder_" if is_of_two and "decoder" in stack else ""

    def token_predictions(self, model: nn.Module, given: Mapping[str, Any], output: Any) -> TokenPredictions | None:
        labels, logits = given.get("labels"), getattr(output, "logits", None)
        loss_type = getattr(model, "loss_type", None)
        if loss_type not in _LANGUAGE_LOSSES or not isinstance(labels, Tensor) or not isinstance(logits, Tensor):
            return None
        is_of_labels = logits.shape[:-1] == labels.shape
        return TokenPredictions(logits, labels, is_shifted=loss_type == "ForCausalLM") if is_of_labels else None


def _named_arguments(layer: nn.Module) -> list[str]:
    """Return the arguments of a layer's forward, without flags for additional return values."""
    parameters = inspect.signature(type(layer).forward).parameters.items()
    named = [name for name, parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD][1:]
    return [name for name in named if not name.startswith("output_")]


def _check_config(config: Any, implementation: str, *, has_starts: bool) -> None:
    if implementation == "flex_attention":
        raise Refused("flex attention's block masks can't be cut; use attn_implementation='sdpa'")
    if getattr(config, "output_router_logits", False):
        raise Refused("its loss needs the router logits of all tokens (output_router_logits)")
    if "flash" in implementation and not has_starts:
        raise Refused("flash attention finds documents by their first tokens: `protect_first` must be at least 1")
    skipping = next((name for name in _LAYER_DROPS if getattr(config, name, None)), None)
    if skipping is not None:
        raise Refused(f"layers are skipped at random ({skipping}={getattr(config, skipping)}); set it to 0")
    if getattr(config, "use_mid_position_embeddings", False):
        raise Refused("positions of all tokens are added between its layers (use_mid_position_embeddings)")


def _why_not(layer: nn.Module, implementation: str) -> str:
    """Return why tokens can't be dropped in a layer; empty if they can."""
    for site in find_sites(layer):
        if not site.is_readable:
            return f"{site.name} {site.reason}"
        numbering = sorted(_NUMBERING & names_in_forward(type(site.module)))
        if numbering:
            return f"{site.name} uses indices in the tensor as positions ({numbering[0]})"
    for path, module in layer.named_modules():
        if isinstance(module, _MIXING):
            return f"{path} ({type(module).__name__}) mixes neighbouring tokens in the tensor"
        tensors = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        names = [type(module).__name__, path.rpartition(".")[2], *tensors]
        found = next((name for name in names if path and _POSITIONS_INSIDE.search(name)), None)
        if found is not None:
            return f"{path} ({found}) derives positions from the tensor"
        if any(map(_is_mask, module.buffers(recurse=False))):
            return f"{path} has its own mask, which depends on the places of the tokens in the tensor"
    window = _window(layer)
    if "flash" in implementation and window is not None:
        return (
            f"flash attention measures its window of {window} tokens in the tensor, which lacks some; "
            "use attn_implementation='sdpa'"
        )
    return ""


def _is_mask(buffer: Tensor) -> bool:
    """Return whether a buffer is a mask that is not causal; a causal mask stays valid for tokens in order."""
    is_matrix = buffer.dtype == torch.bool and buffer.ndim >= 2
    return is_matrix and not torch.equal(buffer, torch.ones_like(buffer).tril())


def _window(layer: nn.Module) -> int | None:
    """Return the length of a layer's sliding window, from its attention module or the config; None without one."""
    for site in find_sites(layer):
        config = getattr(site.module, "config", None)
        window = getattr(site.module, "sliding_window", getattr(config, "sliding_window", None))
        if window is not None:
            return window
    return None
