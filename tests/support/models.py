"""Tiny real models: the same weights every time, drawn wide enough that attention is far from uniform."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

VOCABULARY, WIDTH, HEADS, LAYERS, TOKENS = 50, 32, 4, 2, 12
HEAD_DIM = WIDTH // HEADS
LENGTHS = [TOKENS, 7, 9]  # of the sequences in a padded batch

_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    **_IDS,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": HEAD_DIM}


def seeded(build) -> nn.Module:
    """What `build()` makes, in train mode, with wide random weights. The global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build().train()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.3)
    return model


def _transformers(model_class, config_class, implementation: str, **options) -> hf.PreTrainedModel:
    if implementation == "sdpa" and not model_class._supports_sdpa:  # T5 in transformers 4
        pytest.skip(f"transformers {hf.__version__}: {model_class.__name__} has no sdpa attention")
    config = config_class(**options)
    config._attn_implementation = implementation
    return seeded(lambda: model_class(config))


def llama(implementation: str = "sdpa", *, dropout: float = 0.0, layers: int = LAYERS):
    options = _GROUPED | {"attention_dropout": dropout, "num_hidden_layers": layers}
    return _transformers(hf.LlamaForCausalLM, hf.LlamaConfig, implementation, **options)


def afmoe(implementation: str = "sdpa"):
    options = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "num_experts": 2}
    options |= {"num_dense_layers": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 1}
    return _transformers(hf.AfmoeForCausalLM, hf.AfmoeConfig, implementation, **_GROUPED | options)


def modernbert(implementation: str = "sdpa"):
    options = {"layer_types": ["sliding_attention", "full_attention"], "local_attention": 8, "cls_token_id": 1}
    return _transformers(hf.ModernBertModel, hf.ModernBertConfig, implementation, **_SIZES | options, sep_token_id=2)


def modernbert_decoder(implementation: str = "sdpa"):
    options = {"layer_types": ["sliding_attention", "full_attention"], "local_attention": 8, "cls_token_id": 1}
    model_class, config_class = hf.ModernBertDecoderForCausalLM, hf.ModernBertDecoderConfig
    return _transformers(model_class, config_class, implementation, **_SIZES | options, sep_token_id=2)


def qwen2_vision(implementation: str = "sdpa"):
    """Of patches of 3 × 2 × 4 × 4 numbers, with rotary positions."""
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel as Vision

    options = {"depth": LAYERS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": HEADS, "patch_size": 4}
    return _transformers(Vision, Qwen2VLVisionConfig, implementation, **options)


def mistral(implementation: str = "sdpa"):
    return _transformers(hf.MistralForCausalLM, hf.MistralConfig, implementation, **_GROUPED, sliding_window=4)


def gemma2(implementation: str = "eager"):
    options = {"sliding_window": 4, "attn_logit_softcapping": 0.7, "query_pre_attn_scalar": HEAD_DIM}
    return _transformers(hf.Gemma2ForCausalLM, hf.Gemma2Config, implementation, **_GROUPED, **options)


def gpt_oss(implementation: str = "eager"):
    options = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4}
    options["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    return _transformers(hf.GptOssForCausalLM, hf.GptOssConfig, implementation, **_GROUPED, **options)


def doge(implementation: str = "eager"):
    """Which keys a token sees depends on their content: it can't be observed."""
    return _transformers(hf.DogeForCausalLM, hf.DogeConfig, implementation, **_GROUPED, keep_window_size=4)


def gpt2(implementation: str = "sdpa", *, is_scaled_by_layer: bool = True):
    options = {"n_positions": 64, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    dropout = {
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
        "scale_attn_by_inverse_layer_idx": is_scaled_by_layer,
    }
    return _transformers(hf.GPT2LMHeadModel, hf.GPT2Config, implementation, **_IDS, **options, **dropout)


def bert(implementation: str = "sdpa", *, dropout: float = 0.0, **options):
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return _transformers(hf.BertModel, hf.BertConfig, implementation, **_SIZES, **dropouts, **options)


def vit(implementation: str = "sdpa"):
    sizes = {name: _SIZES[name] for name in _SIZES if name not in (*_IDS, "max_position_embeddings")}
    return _transformers(hf.ViTModel, hf.ViTConfig, implementation, **sizes, image_size=12, patch_size=4)


def t5(implementation: str = "sdpa"):
    options = {"d_model": WIDTH, "d_kv": HEAD_DIM, "d_ff": 48, "num_layers": LAYERS, "num_heads": HEADS}
    return _transformers(hf.T5Model, hf.T5Config, implementation, **_IDS, **options, dropout_rate=0.0)


def bart(implementation: str = "sdpa"):
    options = {"d_model": WIDTH, "max_position_embeddings": 64, "dropout": 0.0, "decoder_start_token_id": 2}
    for stack in ("encoder", "decoder"):
        options |= {f"{stack}_layers": LAYERS, f"{stack}_attention_heads": HEADS, f"{stack}_ffn_dim": 48}
    return _transformers(hf.BartModel, hf.BartConfig, implementation, **_IDS, **options)


def deberta(implementation: str = "eager"):
    return _transformers(hf.DebertaV2Model, hf.DebertaV2Config, implementation, **_SIZES)


def bloom(implementation: str = "eager"):
    options = {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    return _transformers(hf.BloomModel, hf.BloomConfig, implementation, **_IDS, **options)


def qwen2(implementation: str = "sdpa"):
    return _transformers(hf.Qwen2ForCausalLM, hf.Qwen2Config, implementation, **_GROUPED)


def qwen3(implementation: str = "sdpa"):
    return _transformers(hf.Qwen3ForCausalLM, hf.Qwen3Config, implementation, **_GROUPED)


def phi3(implementation: str = "sdpa"):
    return _transformers(hf.Phi3ForCausalLM, hf.Phi3Config, implementation, **_GROUPED)


def gpt_neox(implementation: str = "sdpa"):
    return _transformers(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, implementation, **_SIZES)


def persimmon(implementation: str = "sdpa"):
    return _transformers(hf.PersimmonForCausalLM, hf.PersimmonConfig, implementation, **_SIZES)


def roberta(implementation: str = "sdpa"):
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return _transformers(hf.RobertaModel, hf.RobertaConfig, implementation, **_SIZES, **dropouts)


def distilbert(implementation: str = "sdpa"):
    options = {"dim": WIDTH, "hidden_dim": 48, "n_layers": LAYERS, "n_heads": HEADS, "max_position_embeddings": 64}
    dropouts = {"dropout": 0.0, "attention_dropout": 0.0}
    return _transformers(hf.DistilBertModel, hf.DistilBertConfig, implementation, **_IDS, **options, **dropouts)


def opt(implementation: str = "sdpa"):
    options = {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "dropout": 0.0}
    return _transformers(hf.OPTForCausalLM, hf.OPTConfig, implementation, **_SIZES, **options)


def whisper(implementation: str = "sdpa"):
    options = {"d_model": WIDTH, "num_mel_bins": 6, "max_source_positions": TOKENS, "max_target_positions": 64}
    for stack in ("encoder", "decoder"):
        options |= {f"{stack}_layers": LAYERS, f"{stack}_attention_heads": HEADS, f"{stack}_ffn_dim": 48}
    ids = {**_IDS, "decoder_start_token_id": 1, "suppress_tokens": [], "begin_suppress_tokens": []}
    return _transformers(hf.WhisperModel, hf.WhisperConfig, implementation, **ids, **options, dropout=0.0)


def gpt2_with_cross_attention(implementation: str = "sdpa"):
    config = gpt2(implementation).config
    config.add_cross_attention = True
    return seeded(lambda: hf.GPT2LMHeadModel(config))


def t5_for_generation(implementation: str = "sdpa"):
    return seeded(lambda: hf.T5ForConditionalGeneration(t5(implementation).config))


def bart_for_generation(implementation: str = "sdpa"):
    return seeded(lambda: hf.BartForConditionalGeneration(bart(implementation).config))


def token_ids(batch: int = len(LENGTHS), tokens: int = TOKENS, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)


def padding_mask(side: str) -> Tensor:
    """int64 [batch, tokens], 0 at padding; sequences of `LENGTHS`, padded on the `"left"` or `"right"`."""
    positions = torch.arange(TOKENS) if side == "right" else torch.arange(TOKENS).flip(0)
    return (positions < torch.tensor(LENGTHS)[:, None]).long()


class FusedAttention(nn.Module):
    """One projection for query, key and value, and torch's fused attention (nanoGPT)."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.projection = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> list[Tensor]:
        """Query, key and value, each [batch, heads, tokens, head_dim]."""
        return [part.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for part in self.projection(x).chunk(3, -1)]


class AliasedAttention(FusedAttention):
    """Calls the fused attention through a name that its file has imported."""

    def forward(self, x: Tensor) -> Tensor:
        return self.output(sdpa(*self.heads(x), is_causal=True).transpose(1, 2).flatten(2))


class IndirectAttention(FusedAttention):
    """Calls the fused attention from a helper of a helper."""

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self._mix(x).transpose(1, 2).flatten(2))

    def _mix(self, x: Tensor) -> Tensor:
        return _causal(*self.heads(x))


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


class GPT(nn.Module):
    """A small decoder-only language model around any attention module; returns the loss."""

    def __init__(self, attention=FusedAttention, *, layers: int = LAYERS, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "attention": attention(dropout=dropout)}) for _ in range(layers)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.embedding(ids))
        for layer in self.layers:
            x = x + self.dropout(layer["attention"](layer["norm"](x)))
        return F.cross_entropy(self.head(x[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def gpt(attention=FusedAttention, **options) -> GPT:
    return seeded(lambda: GPT(attention, **options))


class OwnAttention(FusedAttention):
    """A user's attention that takes the number of heads from its weights."""

    def heads(self, x: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in self.projection(x).chunk(3, -1)]


class CausalSelfAttention(nn.Module):
    """nanoGPT's attention: its names, its arithmetic, and its two ways to compute the same."""

    def __init__(self, dropout: float = 0.0, *, bias: bool = True, flash: bool = True):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.c_proj = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.attn_dropout = nn.Dropout(dropout)
        self.resid_dropout = nn.Dropout(dropout)
        self.n_head = HEADS
        self.n_embd = WIDTH
        self.dropout = dropout
        self.flash = flash
        if not flash:
            self.register_buffer("bias", torch.ones(64, 64).tril()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if self.flash:
            y = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=None, dropout_p=self.dropout if self.training else 0, is_causal=True
            )
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            att = self.attn_dropout(F.softmax(att, dim=-1))
            y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))
