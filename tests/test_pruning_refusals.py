"""Modules whose heads can't be removed are refused with the reason."""

import warnings
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from models import HEADS, VOCABULARY, WIDTH, FusedAttention, bloom, deberta, gpt, gpt2, llama, seeded
from photograph import assert_unchanged, photograph
from pruning_models import EVERYWHERE, with_lora
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from attnwatch import ConfigurationError, HeadLayout, prune_heads, register_layout


def small(model_class: type, config_class: type, **options) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return seeded(lambda: model_class(config_class(**sizes, **ids, intermediate_size=48, **options)))


def umt5() -> nn.Module:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": HEADS}
    return hf.UMT5EncoderModel(hf.UMT5Config(vocab_size=VOCABULARY, **sizes))


def gemma3n() -> nn.Module:
    options = {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
    return small(hf.Gemma3nForCausalLM, hf.Gemma3nTextConfig, num_key_value_heads=2, head_dim=8, **options)


def moonshine() -> nn.Module:
    sizes = {
        f"{stack}_num_{what}": 1 for stack in ("encoder", "decoder") for what in ("hidden_layers", "attention_heads")
    }
    return hf.MoonshineModel(hf.MoonshineConfig(vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, **sizes))


def beit() -> nn.Module:
    options = {"image_size": 12, "patch_size": 4, "use_relative_position_bias": True}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    return hf.BeitModel(hf.BeitConfig(**sizes, **options))


def with_weight_norm() -> nn.Module:
    model = llama(layers=1)
    weight_norm(model.model.layers[0].self_attn.k_proj)
    return model


def with_ia3() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft calls what transformers deprecates
        return peft.get_peft_model(llama(layers=1), config)


def with_parametrized_attention() -> nn.Module:
    return weight_norm(nn.MultiheadAttention(WIDTH, HEADS), "in_proj_weight")


def with_tied_projections() -> nn.Module:
    model = llama()
    first, second = (layer.self_attn for layer in model.model.layers)
    second.q_proj.weight = first.q_proj.weight
    return model


class Rotated(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        return super().forward(query.roll(1), key, value, **options)


def nanogpt_variant() -> nn.Module:
    class CausalSelfAttention(FusedAttention):
        def __init__(self, dropout: float = 0.0):
            super().__init__(dropout)
            self.c_attn, self.c_proj = self.projection, self.output
            self.n_head, self.n_embd, self.resid_dropout = HEADS, WIDTH, nn.Dropout(dropout)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cos(x))

    return gpt(CausalSelfAttention)


REFUSED = {
    "bloom": (bloom, "the layout of BloomAttention is not known; describe it with attnwatch.register_layout"),
    "deberta": (deberta, "the layout of Disentangled.* is not known"),
    "unknown module": (gpt, "the layout of FusedAttention is not known"),
    "variant of nanogpt": (nanogpt_variant, "the layout of CausalSelfAttention is not known"),
    "subclass of torch's": (lambda: Rotated(WIDTH, HEADS), "the layout of Rotated is not known"),
    "umt5": (umt5, "the layout of UMT5Attention is not known"),
    "biases from outside": (beit, "the layout of BeitAttention is not known"),
    "keys and values of other layers": (gemma3n, "the layout of Gemma3nTextAttention is not known"),
    "heads of the config": (moonshine, "the layout of MoonshineAttention is not known"),
    "olmo2": (lambda: small(hf.Olmo2ForCausalLM, hf.Olmo2Config), "its q_norm normalizes all heads together"),
    "cohere": (
        lambda: small(hf.CohereForCausalLM, hf.CohereConfig, use_qk_norm=True),
        "its q_norm normalizes .* or each head with weights of its own",
    ),
    "stablelm": (
        lambda: small(hf.StableLmForCausalLM, hf.StableLmConfig, num_key_value_heads=HEADS, qk_layernorm=True),
        "its q_layernorm normalizes .* or each head with weights of its own",
    ),
    "bias_k": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
        r"its parameter bias_k \[1, 1, 32\] is not in the layout",
    ),
    "zero attention": (lambda: nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True), "is not known"),
    "parametrized attention": (with_parametrized_attention, "its parameters are parametrized"),
    "parametrized projection": (with_weight_norm, "the weight of its projection .* is parametrized or quantized"),
    "tied projections": (with_tied_projections, r"its parameter q_proj.weight \[32, 32\] is used in another place too"),
    "another adapter": (with_ia3, "its adapter Linear has a parameter ia3_l.default, which is none of LoRA's"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_sites(build: Callable, message: str):
    model = build()
    before = photograph(model)
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(model, {0: [0]})
    assert_unchanged(before, model)


def test_torchs_attention_in_an_adapter():
    model = with_lora(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 48), "self_attn")()
    with pytest.raises(ConfigurationError, match="it lies in an adapter MultiheadAttention"):
        prune_heads(model, {0: [0]})


def test_a_refused_site_among_others():
    model = nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True), nn.MultiheadAttention(WIDTH, HEADS)])
    with pytest.raises(ConfigurationError, match="the heads of '0' can't be removed: its parameter bias_k"):
        prune_heads(model, {"0": [0]})
    prune_heads(model, {0: [0]})  # layers are counted over what can be pruned
    assert [module.num_heads for module in model] == [HEADS, HEADS - 1]


ADAPTED = {
    "dora": with_lora(llama, *EVERYWHERE, use_dora=True),
    "lora around a Conv1D": with_lora(gpt2, "c_proj", fan_in_fan_out=True),
}


@pytest.mark.parametrize("build", ADAPTED.values(), ids=ADAPTED)
def test_adapters_that_need_a_head(build: Callable):
    model = build()
    before = photograph(model)
    with pytest.raises(ConfigurationError, match="at least one must stay, as the adapter of its output projection"):
        prune_heads(model, {0: range(HEADS)})
    assert_unchanged(before, model)


@pytest.mark.parametrize("segments", ["", "q|", "q,k", "Q", "x"])
def test_segments_that_cannot_be_read(segments: str):
    with pytest.raises(ConfigurationError, match="must be segments of the letters q, k and v"):
        HeadLayout({"projection": segments}, "output", 8)


def test_wrong_layouts():
    with pytest.raises(ConfigurationError, match="must be 'output', 'pair' or None, got 'outputs'"):
        HeadLayout({"projection": "q"}, "output", 8, returns="outputs")
    with pytest.raises(ConfigurationError, match="must be a class of modules"):
        register_layout(FusedAttention(), HeadLayout({"projection": "q|k|v"}, "output", 8))


MISFITS = {
    "head_dim": (HeadLayout({"projection": "q|k|v"}, "output", 7), "do not have the features of whole heads"),
    "segments": (HeadLayout({"projection": "q|k"}, "output", 8), "do not have the features of whole heads"),
    "attribute": (HeadLayout({"projection": "q|k|v"}, "output", "head_dim"), "it has no attribute 'head_dim'"),
    "input": (HeadLayout({"qkv": "q|k|v"}, "output", 8), "it has no projection 'qkv'"),
    "output": (HeadLayout({"projection": "q|k|v"}, "../out", 8), "it has no projection '../out'"),
}


@pytest.mark.parametrize(("layout", "message"), MISFITS.values(), ids=MISFITS)
def test_layouts_that_do_not_fit(layout: HeadLayout, message: str):
    class Unusual(FusedAttention):
        pass

    register_layout(Unusual, layout)
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(gpt(Unusual), {0: [0]})
