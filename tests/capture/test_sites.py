"""Which attention a model has, what can't be read, and what is said about it."""

import re

import pytest
import torch
from torch import Tensor, nn

from attnwatch import ConfigurationError, NoAttentionError
from attnwatch.capture import find_sites
from attnwatch.recorder import AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import (
    HEADS,
    LAYERS,
    WIDTH,
    AliasedAttention,
    FusedAttention,
    IndirectAttention,
    bart,
    bert,
    bloom,
    deberta,
    gpt,
    gpt2,
    llama,
    t5,
    token_ids,
    vit,
)
from tests.support.versions import BEFORE_5, EARLY, lacks


class Inherited(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 1)


class HandwrittenAttention(FusedAttention):
    """Attention that torch's kernels know nothing of."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        return self.output(((query @ key.mT).softmax(-1) @ value).transpose(1, 2).flatten(2))


class XformersAttention(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        import xformers.ops as xops

        return xops.memory_efficient_attention(*self.heads(x))


VIT = "encoder.layer.{}.attention.attention" if EARLY else "layers.{}.attention"
READABLE = {
    "llama": (llama, [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]),
    "gpt2": (gpt2, [f"transformer.h.{layer}.attn" for layer in range(LAYERS)]),
    "bert": (bert, [f"encoder.layer.{layer}.attention.self" for layer in range(LAYERS)]),
    "vit": (vit, [VIT.format(layer) for layer in range(LAYERS)]),
    "plain": (gpt, [f"layers.{layer}.attention" for layer in range(LAYERS)]),
    "alias": (lambda: gpt(AliasedAttention), [f"layers.{layer}.attention" for layer in range(LAYERS)]),
    "helpers": (lambda: gpt(IndirectAttention), [f"layers.{layer}.attention" for layer in range(LAYERS)]),
    "inherited": (lambda: gpt(Inherited), [f"layers.{layer}.attention" for layer in range(LAYERS)]),
    "torch encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True), LAYERS),
        [f"layers.{layer}.self_attn" for layer in range(LAYERS)],
    ),
}
UNREADABLE = {
    "deberta": (deberta, "encoder.layer.0.attention.self"),
    "bloom": (bloom, "h.0.self_attention"),
    "handwritten": (lambda: gpt(HandwrittenAttention), "layers.0.attention"),
}


@pytest.mark.parametrize(("build", "expected"), READABLE.values(), ids=READABLE)
def test_sites_in_module_order(build, expected: list[str]):
    sites = find_sites(build())
    assert [site.name for site in sites] == expected
    assert not any(site.reason for site in sites)


@pytest.mark.parametrize("build", [t5, bart], ids=["t5", "bart"])
def test_encoder_decoder_has_three_kinds(build):
    is_cross = [site.is_cross for site in find_sites(build())]
    assert is_cross == [False] * LAYERS + [False, True] * LAYERS


def test_cross_attention_is_told_from_the_class_too():
    sites = find_sites(bert(is_decoder=True, add_cross_attention=True))
    assert [site.is_cross for site in sites] == [False, True] * LAYERS


@pytest.mark.parametrize(("build", "first"), UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which DeBERTa used in transformers 4
def test_unreadable_attention_is_named(build, first: str):
    model = build()
    sites = find_sites(model)
    assert [site.is_readable for site in sites] == [False] * LAYERS
    expected = (
        f"`model` ({type(model).__name__}) has no attention that can be read. {first}: computes attention without"
    )
    with pytest.raises(NoAttentionError, match=re.escape(expected)):
        AttentionRecorder(model)


@lacks(not BEFORE_5, "no attention of BERT is computed by hand")
@pytest.mark.parametrize("options", [{}, {"is_decoder": True, "add_cross_attention": True}], ids=["", "cross"])
def test_eager_attention_by_hand_is_named_with_the_remedy(options: dict):
    expected = "attention.self: computes eager attention by hand; set attn_implementation='sdpa' to have it observed"
    for model in (bert("eager", **options), nn.Sequential(bert("eager", **options))):
        assert {site.reason for site in find_sites(model)} == {expected.partition(": ")[2]}
        with pytest.raises(NoAttentionError, match=re.escape(expected)):
            AttentionRecorder(model)


def test_package_that_is_called_directly_is_named():
    assert find_sites(gpt(XformersAttention))[0].reason.startswith("calls xformers directly; use torch's")


def test_readable_layers_beside_an_unreadable_one_are_observed():
    model = gpt()
    model.layers[1]["attention"] = HandwrittenAttention()
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            model(token_ids())
        history = recorder.history()
    assert history.sites == ("layers.0.attention",)
    assert history.coverage["layers.0.attention"] == "observed"
    assert history.coverage["layers.1.attention"].startswith("computes attention without")


def test_model_without_attention():
    expected = (
        r"`model` \(Linear\) has no attention: no module calls .*scaled_dot_product_attention, .*torch.nn.Multihead"
    )
    with pytest.raises(NoAttentionError, match=expected):
        AttentionRecorder(nn.Linear(2, 2))


def test_module_that_is_an_attention_itself_is_named_after_its_class():
    assert [site.name for site in find_sites(FusedAttention())] == ["FusedAttention"]


def test_wrappers_do_not_show_in_names():
    compiled = nn.Sequential(torch.compile(gpt(), backend="eager"))
    assert [site.name for site in find_sites(compiled)] == [f"0.layers.{layer}.attention" for layer in range(LAYERS)]


def test_patterns_select_sites():
    model = llama()
    with AttentionRecorder(model, sites=["*.1.self_attn"]) as recorder:
        with recorder.step(0):
            model(token_ids())
        history = recorder.history()
    assert history.sites == ("model.layers.1.self_attn",)
    assert all(history[name].shape == (1, 1, HEADS) for name in Statistic.registry)


def test_pattern_without_a_match_lists_the_sites():
    expected = "`sites`: '*.7.*' matches none of the model's sites: layers.0.attention, layers.1.attention."
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        AttentionRecorder(gpt(), sites=["*.0.*", "*.7.*"])


def test_patterns_must_be_a_list():
    expected = "`sites` must be a list of glob patterns, got the string '*.0.*'."
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        AttentionRecorder(gpt(), sites="*.0.*")
