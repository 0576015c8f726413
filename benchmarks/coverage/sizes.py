"""Small sizes for all architectures, under the names that their configurations have for them."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers as hf

VOCABULARY, WIDTH, FEATURES, LAYERS, HEADS, KEY_HEADS, TOKENS = 64, 32, 48, 2, 4, 2, 12
HEAD_DIM = WIDTH // HEADS
WINDOW = 3  # of attention that is local
PAD, BEGIN, END, IMAGE, VISION_START = 0, 1, 2, 3, 4
FIRST_WORD = 8  # smaller ids are special tokens
PICTURE, PATCH = 12, 4  # width of images and of their patches, in pixels

_NAMES = (
    (VOCABULARY, "vocab_size"),
    (WIDTH, "hidden_size d_model n_embd dim embed_dim word_embed_proj_dim embedding_size"),
    (FEATURES, "intermediate_size n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim hidden_dim d_ff ffn_hidden_size"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers"),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (KEY_HEADS, "num_key_value_heads num_experts_per_tok top_k_experts"),
    (HEAD_DIM, "head_dim d_kv"),
)
_SIZES = {name: size for size, names in _NAMES for name in names.split()}
_SIZES |= dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4)
_SIZES |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16)
_SIZES |= dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions", "n_ctx"), 64)
_SIZES |= {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END, "decoder_start_token_id": END}
_SIZES |= {"sliding_window": WINDOW, "image_size": PICTURE, "patch_size": PATCH, "num_channels": 3}
_SIZES |= {"use_mamba_kernels": False}  # which are for GPUs
_RANDOM = ("dropout", "pdrop", "_drop", "drop_path", "layerdrop", "jitter")


@dataclass(frozen=True)
class Part:
    """Configuration of a part of a model that has several."""

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)


def small_config(config_class: type[hf.PretrainedConfig], options: Mapping[str, Any]) -> hf.PretrainedConfig:
    """Return a configuration with small sizes, without dropout, and with `options`, whose parts are made likewise."""
    defaults = _defaults(config_class)
    sizes = {name: size for name, size in _SIZES.items() if name in defaults}
    if defaults.get("sliding_window") is None:  # a model without one
        sizes.pop("sliding_window", None)
    for name, default in defaults.items():
        if isinstance(default, float) and any(part in name for part in _RANDOM):
            sizes[name] = 0.0
    given = {name: _part(value) if isinstance(value, Part) else value for name, value in options.items()}
    return config_class(**sizes | given)


def _defaults(config_class: type[hf.PretrainedConfig]) -> dict[str, Any]:
    """Return the default of each option. Configurations are dataclasses since transformers 5."""
    if dataclasses.is_dataclass(config_class):
        return {field.name: field.default for field in dataclasses.fields(config_class)}
    return {name: parameter.default for name, parameter in inspect.signature(config_class).parameters.items()}


def _part(part: Part) -> dict[str, Any]:
    return small_config(getattr(hf, part.config), part.options).to_dict()
