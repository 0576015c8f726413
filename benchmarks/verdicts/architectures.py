"""Small transformers of several kinds, from transformers' configurations."""

import transformers as hf
from torch import nn

from benchmarks.common import minilm_directory


def llama(vocabulary: int, **sizes: int) -> nn.Module:
    """Pre-norm, rotary positions, GQA."""
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_rotary(vocabulary, **sizes)))


def qwen3(vocabulary: int, **sizes: int) -> nn.Module:
    """As Llama, and queries and keys are normalized."""
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_rotary(vocabulary, **sizes)))


def _rotary(vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4, key_heads: int = 2) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": width // heads,
        "max_position_embeddings": 256,
        "pad_token_id": None,
        "use_cache": False,
    }


def gpt2(vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4) -> nn.Module:
    """Pre-norm, learned positions."""
    config = hf.GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return hf.GPT2LMHeadModel(config)


def opt(vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4) -> nn.Module:
    """Post-norm, learned positions."""
    config = hf.OPTConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=256,
        do_layer_norm_before=False,
        dropout=0.0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return hf.OPTForCausalLM(config)


def vit(labels: int, *, width: int = 64, layers: int = 4, heads: int = 4, patch: int = 7) -> nn.Module:
    """Encoder, pre-norm, learned positions, class token; on gray images of 28 x 28 pixels."""
    config = hf.ViTConfig(
        image_size=28,
        patch_size=patch,
        num_channels=1,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_labels=labels,
    )
    return hf.ViTForImageClassification(config)


def minilm(labels: int, *, layers: int) -> nn.Module:
    """The first layers of a pretrained sentence encoder (all-MiniLM-L6-v2): post-norm, learned positions.

    As it is loaded: without dropout, as all models here.
    """
    return hf.AutoModelForSequenceClassification.from_pretrained(
        minilm_directory(), num_labels=labels, num_hidden_layers=layers, trust_remote_code=False
    )
