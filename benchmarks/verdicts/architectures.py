"""Small transformers of several kinds, from transformers' configurations."""

from typing import Any

import transformers as hf
from torch import nn

from benchmarks.common import minilm_directory

_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "use_cache": False}


def llama(vocabulary: int, **sizes: int) -> nn.Module:
    """Return a model with pre-norm, rotary positions and grouped queries."""
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_rotary(vocabulary, **sizes)))


def qwen3(vocabulary: int, **sizes: int) -> nn.Module:
    """Return a model like `llama`, with normalized queries and keys."""
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_rotary(vocabulary, **sizes)))


def _rotary(vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4, key_heads: int = 2) -> dict[str, Any]:
    return _sizes(width, layers, heads) | {
        "vocab_size": vocabulary,
        "intermediate_size": 3 * width,
        "num_key_value_heads": key_heads,
        "head_dim": width // heads,
        "max_position_embeddings": 256,
        "pad_token_id": None,
        "use_cache": False,
    }


def _sizes(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}


def gpt2(vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4) -> nn.Module:
    """Return a model with pre-norm and learned positions."""
    sizes = {"vocab_size": vocabulary, "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 256}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **dropout, **_NO_SPECIAL_TOKENS))


def opt(vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4) -> nn.Module:
    """Return a model with post-norm and learned positions."""
    sizes = _sizes(width, layers, heads) | {"vocab_size": vocabulary, "ffn_dim": 4 * width}
    options = {"word_embed_proj_dim": width, "max_position_embeddings": 256, "do_layer_norm_before": False}
    return hf.OPTForCausalLM(hf.OPTConfig(**sizes, **options, **_NO_SPECIAL_TOKENS, pad_token_id=None, dropout=0.0))


def vit(labels: int, *, width: int = 64, layers: int = 4, heads: int = 4, patch: int = 7) -> nn.Module:
    """Return an encoder of gray images of 28 x 28 pixels, with pre-norm, learned positions and a class token."""
    sizes = _sizes(width, layers, heads) | {"intermediate_size": 3 * width, "num_labels": labels}
    config = hf.ViTConfig(**sizes, image_size=28, patch_size=patch, num_channels=1)
    return hf.ViTForImageClassification(config)


def minilm(labels: int, *, layers: int) -> nn.Module:
    """Return the first layers of a pretrained sentence encoder (all-MiniLM-L6-v2): post-norm, learned positions.

    Without dropout, as all models here, and in training mode.
    """
    sizes = {"num_labels": labels, "num_hidden_layers": layers}
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        minilm_directory(), **sizes, **dropout, trust_remote_code=False
    )
    return model.train()
