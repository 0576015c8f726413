"""Modules whose heads can't be removed are refused with the reason."""

import importlib
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import l1_unstructured

from attnwatch import ConfigurationError, HeadLayout, ModelFamily, prune_heads, register
from attnwatch.heads.head_map import layout_of
from tests.support.head_models import BY_HAND, EVERYWHERE, KINDS, with_lora
from tests.support.models import (
    HEADS,
    VOCABULARY,
    WIDTH,
    FusedAttention,
    bert,
    bloom,
    deberta,
    gpt,
    gpt2,
    llama,
    seeded,
)
from tests.support.snapshot import assert_unchanged, snapshot
from tests.support.versions import BEFORE_5, EARLY, lacks


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


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / self.weight.norm())


class Quantized(nn.Parameter):
    pass


def with_projection(change: Callable[[nn.Linear], nn.Module | None]) -> Callable[[], nn.Module]:
    """A Llama whose second layer has another value projection, or a changed one."""

    def build() -> nn.Module:
        model = llama()
        attention = model.model.layers[0].self_attn
        other = change(attention.v_proj)
        attention.v_proj = attention.v_proj if other is None else other
        return model

    return build


def with_shared_output() -> nn.Module:
    model = llama()
    first, second = (layer.self_attn for layer in model.model.layers)
    second.o_proj = first.o_proj
    return model


def with_shared_attention() -> nn.Module:
    model = bert()
    first, second = (layer.attention for layer in model.encoder.layer)
    second.self = first.self
    return model


def with_prefix() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(llama(layers=1), config)


def with_merged_dora() -> nn.Module:
    model = with_lora(llama, "o_proj", use_dora=True)()
    model.merge_adapter()
    return model


REFUSED = {
    "linear with a forward of its own": (
        with_projection(lambda linear: Scaled(WIDTH, linear.out_features)),
        "its projection is a Scaled, a Linear with its own forward",
    ),
    "buffer of a projection": (
        with_projection(lambda linear: linear.register_buffer("scales", torch.ones(16))),
        "its projection Linear has an unknown attribute 'scales'",
    ),
    "adapter inside a projection": (
        with_projection(lambda linear: linear.register_parameter("lora_A", nn.Parameter(torch.ones(2, WIDTH)))),
        "its projection Linear has an unknown attribute 'lora_A'",
    ),
    "parameter of another class": (
        with_projection(lambda linear: setattr(linear, "weight", Quantized(linear.weight.data))),
        "the weight of its projection Linear is parametrized, quantized or sharded",
    ),
    "hook on a gradient": (
        with_projection(lambda linear: linear.weight.register_hook(torch.neg) and None),
        "its parameter v_proj.weight has hooks, which a cut would lose",
    ),
    "hook after a gradient": (
        with_projection(lambda linear: linear.weight.register_post_accumulate_grad_hook(print) and None),
        "its parameter v_proj.weight has hooks, which a cut would lose",
    ),
    "shared projection": (with_shared_output, "the module or one of its projections is also used elsewhere"),
    "shared attention, output apart": (
        with_shared_attention,
        "the module or one of its projections is also used elsewhere",
    ),
    "prefix tuning": (with_prefix, "the adapter PREFIX_TUNING has keys and values for all heads"),
    "merged dora": (with_merged_dora, "its DoRA adapter is merged"),
    "bloom": (bloom, "the layout of BloomAttention is unknown; describe it in an attnwatch.ModelFamily"),
    "deberta": (deberta, "the layout of Disentangled.* is unknown"),
    "unknown module": (
        gpt,
        r"the layout of FusedAttention is unknown; describe it in an attnwatch.ModelFamily \(its modules and "
        r"parameters are projection, output\)",
    ),
    "variant of nanogpt": (nanogpt_variant, "the layout of CausalSelfAttention is unknown"),
    "subclass of torch's": (lambda: Rotated(WIDTH, HEADS), "the layout of Rotated is unknown"),
    "umt5": (umt5, "the layout of UMT5Attention is unknown"),
    "biases from outside": (beit, "the layout of Beit(Sdpa)?(Self)?Attention is unknown"),
    "keys and values of other layers": (gemma3n, "the layout of Gemma3nTextAttention is unknown"),
    "heads of the config": (moonshine, "the layout of MoonshineAttention is unknown"),
    "olmo2": (lambda: small(hf.Olmo2ForCausalLM, hf.Olmo2Config), "its q_norm normalizes all heads together"),
    "cohere": (
        lambda: small(hf.CohereForCausalLM, hf.CohereConfig, use_qk_norm=True),
        "its q_norm normalizes .* or each head with its own weights",
    ),
    "stablelm": pytest.param(
        lambda: small(hf.StableLmForCausalLM, hf.StableLmConfig, num_key_value_heads=HEADS, qk_layernorm=True),
        "its q_layernorm normalizes .* or each head with its own weights",
        marks=lacks(BEFORE_5, "such a StableLM can't be built"),
    ),
    "bias_k": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
        r"its parameter bias_k \[1, 1, 32\] is not in the layout",
    ),
    "zero attention": (lambda: nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True), "is unknown"),
    "parametrized attention": (with_parametrized_attention, "its parameters are parametrized"),
    "parametrized projection": (
        with_weight_norm,
        "the weight of its projection .* is parametrized, quantized or sharded",
    ),
    "tied projections": (with_tied_projections, r"its parameter q_proj.weight \[32, 32\] is also used elsewhere"),
    "another adapter": (with_ia3, "its adapter Linear has a parameter ia3_l.default, which LoRA does not have"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which DeBERTa used in transformers 4
def test_refused_sites(build: Callable, message: str):
    model = build()
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(model, {0: [0]})
    assert_unchanged(before, model)


@lacks(not BEFORE_5, "no attention of these is computed by hand")
@pytest.mark.parametrize("name", sorted(BY_HAND - {"t5, sdpa"}))  # which there is not
def test_attention_by_hand_is_refused(name: str):
    family, _, implementation = name.rpartition(", ")
    model = KINDS[family].build(implementation)
    with pytest.raises(ConfigurationError, match=r"the layout of \w+Attention is unknown"):
        prune_heads(model, {0: [0]})


def test_torchs_attention_in_an_adapter():
    model = with_lora(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 48), "self_attn")()
    with pytest.raises(ConfigurationError, match="it is inside an adapter MultiheadAttention"):
        prune_heads(model, {0: [0]})


def test_a_refused_site_among_others():
    model = nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True), nn.MultiheadAttention(WIDTH, HEADS)])
    with pytest.raises(ConfigurationError, match="the heads of '0' can't be removed: its parameter bias_k"):
        prune_heads(model, {"0": [0]})
    with pytest.raises(ConfigurationError, match="the heads of '0' can't be removed: its parameter bias_k"):
        prune_heads(model, {0: [0]})
    prune_heads(model, {1: [0]})  # layers are counted over all sites
    assert [module.num_heads for module in model] == [HEADS, HEADS - 1]


def test_module_that_has_two_names_is_none_that_is_shared():
    model = llama()
    model.backbone = model.model
    prune_heads(model, {0: [0, 1]})
    assert model.model.layers[0].self_attn.o_proj.in_features == WIDTH // 2


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_projection_with_a_mask_of_torchs_own_pruning(name: str):
    attention = nn.MultiheadAttention(WIDTH, HEADS)
    l1_unstructured(attention.out_proj, name, 0.5)
    with pytest.raises(ConfigurationError, match=rf"{name}_mask|is parametrized"):
        prune_heads(attention, {0: [0]})


def test_adapter_that_is_added_after_a_cut():
    model = with_lora(llama, *EVERYWHERE)()
    prune_heads(model, {0: [0, 1]})
    attention = model.base_model.model.model.layers[0].self_attn
    assert (attention.o_proj.in_features, attention.q_proj.out_features, attention.v_proj.out_features) == (16, 16, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter("another", model.peft_config["default"])
        model.set_adapter("another")
    model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    assert attention.o_proj.lora_B["another"].weight.grad is not None


def test_model_in_data_parallelism():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(llama())
        with pytest.raises(ConfigurationError, match="`model` is wrapped in DistributedDataParallel"):
            prune_heads(wrapped, {0: [0, 1]})
        prune_heads(wrapped.module, {0: [0, 1]})
    finally:
        torch.distributed.destroy_process_group()


def test_hint_that_attention_is_causal_needs_the_mask_as_torchs_own_does():
    attention, tokens = nn.MultiheadAttention(WIDTH, HEADS), torch.zeros(3, 1, WIDTH)
    for heads in ([0], [1]):
        with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
            attention(tokens, tokens, tokens, is_causal=True)
        prune_heads(attention, {0: heads})


ADAPTED = {
    "dora": with_lora(llama, *EVERYWHERE, use_dora=True),
    "lora around a Conv1D": with_lora(gpt2, "c_proj", fan_in_fan_out=True),
}


@pytest.mark.parametrize("build", ADAPTED.values(), ids=ADAPTED)
def test_adapters_that_need_a_head(build: Callable):
    model = build()
    before = snapshot(model)
    with pytest.raises(
        ConfigurationError, match="at least one must stay, because the adapter of its output projection"
    ):
        prune_heads(model, {0: range(HEADS)})
    assert_unchanged(before, model)


@pytest.mark.parametrize("segments", ["", "q|", "q,k", "Q", "x"])
def test_segments_that_cannot_be_read(segments: str):
    with pytest.raises(ConfigurationError, match="must be segments of the letters q, k and v"):
        HeadLayout({"projection": segments}, "output", 8)


@lacks(EARLY, "the modules are not there")
def test_modules_whose_code_needs_what_is_not_kept_up_to_date():
    exaone = importlib.import_module("transformers.models.exaone4_5.modeling_exaone4_5").Exaone4_5_VisionAttention
    sizes = {"hidden_size": WIDTH, "num_heads": HEADS, "num_key_value_heads": 2, "_attn_implementation": "sdpa"}
    assert layout_of(exaone(SimpleNamespace(**sizes))) is None
    esmfold = importlib.import_module("transformers.models.esmfold2.modeling_esmfold2").EsmFold2AtomAttention
    sizes = SimpleNamespace(hidden_size=WIDTH, head_dim=WIDTH // HEADS)
    layout = layout_of(esmfold(SimpleNamespace(_attn_implementation="sdpa"), sizes))
    assert layout is None or "gate_proj" not in layout.inputs


def test_wrong_layouts():
    with pytest.raises(ConfigurationError, match="must be 'output', 'pair' or None, got 'outputs'"):
        HeadLayout({"projection": "q"}, "output", 8, returns="outputs")
    for name in ("whole", "head_norms"):
        with pytest.raises(ConfigurationError, match=f"`{name}` must be a tuple of names, got 'norm'"):
            HeadLayout({"projection": "q"}, "output", 8, **{name: "norm"})
    with pytest.raises(ConfigurationError, match="`heads` must map classes of modules to layouts, got FusedAttention"):
        register(ModelFamily("mine", heads={FusedAttention(): HeadLayout({"projection": "q|k|v"}, "output", 8)}))


MISFITS = {
    "head_dim": (
        HeadLayout({"projection": "q|k|v"}, "output", 7),
        "not a multiple of the head size: 32 features enter 'output', and a head has 7; correct",
    ),
    "segments": (HeadLayout({"projection": "q|k"}, "output", 8), "are not a multiple of the head size"),
    "attribute": (
        HeadLayout({"projection": "q|k|v"}, "output", "head_dim"),
        "no attribute 'head_dim'; pass `head_dim` as a number",
    ),
    "input": (HeadLayout({"qkv": "q|k|v"}, "output", 8), "it has no projection 'qkv'; it has projection, output"),
    "output": (HeadLayout({"projection": "q|k|v"}, "../out", 8), "it has no projection '../out'"),
}


@pytest.mark.parametrize(("layout", "message"), MISFITS.values(), ids=MISFITS)
def test_layouts_that_do_not_fit(layout: HeadLayout, message: str, registered):
    class Unusual(FusedAttention):
        pass

    registered(ModelFamily("unusual", heads={Unusual: layout}))
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(gpt(Unusual), {0: [0]})
