"""A model without some heads equals the model in which these heads are masked, in every layout."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from attnwatch import HeadLayout, ModelFamily, prune_heads
from attnwatch.heads import HeadMap
from attnwatch.heads.head_map import layout_of
from tests.support.head_models import (
    COPIES,
    EVERYWHERE,
    FAMILIES,
    MIXED,
    PLAIN,
    Family,
    assert_equal_step,
    causal,
    features,
    masked,
    output,
    pruned,
    survivors,
    timm_attention,
    with_lora,
)
from tests.support.models import (
    HEAD_DIM,
    HEADS,
    TOKENS,
    CausalSelfAttention,
    OwnAttention,
    gpt,
    llama,
    seeded,
    token_ids,
)

COPIED = ("llama, groups, sdpa", "t5, sdpa", "phi3, sdpa", "bart, eager", "gpt2, cross, sdpa", "nanogpt", "bert, sdpa")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_masked_equals_sliced(family: Family):
    model = family.model()
    entries = survivors(model, family.heads)
    assert sum(map(torch.Tensor.numel, entries.values())) < sum(map(torch.Tensor.numel, model.parameters()))
    without = pruned(model, family.heads)
    assert_equal_step(masked(model, family.heads), without, family.batch(), entries)
    for module in without.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        if isinstance(module, Conv1D):
            assert (module.nx, module.nf) == module.weight.shape


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_pruning_twice_equals_pruning_once(family: Family):
    """Heads keep the numbers that they have in the unpruned model."""
    model = family.model()
    once, twice = pruned(model, family.heads), copy.deepcopy(model)
    last = list(family.heads)[-1]
    prune_heads(twice, {last: family.heads[last]})
    prune_heads(twice, {layer: heads for layer, heads in family.heads.items() if layer != last})
    assert_same_model(twice, once)


def test_a_layer_is_pruned_twice():
    model = FAMILIES["t5, sdpa"].model()
    twice = pruned(model, {0: [2], 2: [0]})
    plan = prune_heads(twice, {0: [0], 2: [3]})
    assert list(plan.heads.values()) == [(0,), (3,)]
    assert_same_model(twice, pruned(model, {0: [0, 2], 2: [3, 0]}))


def assert_same_model(got: nn.Module, expected: nn.Module):
    assert got.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name
    for (name, module), other in zip(expected.named_modules(), got.modules(), strict=True):
        for attribute, value in vars(module).items():
            if isinstance(value, int | float | str | tuple):
                assert vars(other)[attribute] == value, f"{name}.{attribute}"
        assert ("forward" in vars(module)) == ("forward" in vars(other))


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("first_layer", [{}, {0: range(HEADS)}], ids=["some heads", "no head in layer 0"])
@pytest.mark.parametrize("name", COPIED)
def test_copies_are_whole_and_apart(name: str, first_layer: dict, duplicate: Callable):
    family = FAMILIES[name]
    model = pruned(family.model(), {**family.heads, **first_layer})
    before, other = output(model, family.batch()), duplicate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(output(other, family.batch()), before)
    assert not torch.equal(output(model, family.batch()), before)


def test_groups_and_heads_within_groups():
    """32 query heads read 8 key-value heads, four each."""
    model = Family(wide_llama, causal, {}).model()
    one_of_each_group = [1, 6, 11, 12, 17, 22, 27, 28]
    heads = {0: [*range(4, 8), *range(28, 32)], 1: one_of_each_group, 2: [*range(8), 8, 13, 18, 23, 24, 29]}
    key_values = {0: [0, 2, 3, 4, 5, 6], 1: range(8), 2: range(2, 8)}
    without = pruned(model, heads)
    for layer, gone in heads.items():
        old, new = (m.model.layers[layer].self_attn for m in (model, without))
        left = [head for head in range(32) if head not in gone]
        for name, kept in (("q_proj", left), ("k_proj", key_values[layer]), ("v_proj", key_values[layer])):
            of_heads = getattr(old, name).weight.unflatten(0, (-1, 4))
            assert torch.equal(getattr(new, name).weight, of_heads[list(kept)].flatten(0, 1)), name
            assert getattr(new, name).out_features == 4 * len(kept)
        assert torch.equal(new.o_proj.weight, old.o_proj.weight.unflatten(1, (-1, 4))[:, left].flatten(1))
        assert new.num_key_value_groups == len(left) // len(key_values[layer])
    assert_equal_step(masked(model, heads), without, causal(), survivors(model, heads))


def wide_llama() -> nn.Module:
    config = llama(layers=3).config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 32, 8, 4
    return seeded(lambda: type(llama())(config))


def test_dora_around_the_output_projection():
    """Its magnitudes follow: the row norms that it divides by are those of what is left."""
    model = Family(with_lora(llama, *EVERYWHERE, use_dora=True), causal, MIXED).model()
    without, entries = pruned(model, MIXED), survivors(model, MIXED)
    for site, gone in zip(HeadMap.of(model).sites.values(), MIXED.values(), strict=True):
        gates = torch.ones(HEADS, HEAD_DIM, dtype=torch.float64)
        gates[gone] = 0
        site.projection.register_forward_pre_hook(lambda _, args, gates=gates: (args[0] * gates.flatten(),))
    for of_model in (model, without):  # a magnitude and its gradient are scaled inversely
        for name, parameter in of_model.named_parameters():
            parameter.requires_grad_("o_proj.lora_magnitude" not in name)
    assert_equal_step(model, without, causal(), entries)


@pytest.fixture
def _own_layout(registered):
    layout = HeadLayout({"projection": "q|k|v"}, "output", HEAD_DIM, returns="output")
    registered(ModelFamily("own", heads={OwnAttention: layout}))


@pytest.mark.usefixtures("_own_layout")
@pytest.mark.parametrize("heads", [PLAIN, {0: range(HEADS), 1: [2]}], ids=["some heads", "no head in layer 0"])
def test_own_module(heads: dict):
    model = Family(lambda: gpt(OwnAttention), causal, heads).model()
    batch = {"ids": token_ids()}
    assert_equal_step(masked(model, heads), pruned(model, heads), batch, survivors(model, heads))


@pytest.mark.parametrize("build", [CausalSelfAttention, timm_attention], ids=["nanogpt", "timm"])
def test_forwards_agree_while_no_head_is_missing(build: Callable):
    """Dropout included."""
    module = build().double()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.3
    if hasattr(module, "dropout"):
        module.dropout = 0.3
    torch.manual_seed(5)
    expected = module(features(TOKENS))
    torch.manual_seed(5)
    got = layout_of(module).forward(module, features(TOKENS))
    torch.testing.assert_close(got, expected)


@st.composite
def grouped_heads(draw) -> dict[int, list[int]]:
    """Of two layers with two groups of two heads: what may go, everything in one of the layers included."""
    allowed = [[], [0, 1], [2, 3], *([i, j] for i in (0, 1) for j in (2, 3)), [0, 1, 2], [1, 2, 3], [0, 1, 2, 3]]
    heads = {layer: draw(st.sampled_from(allowed)) for layer in (0, 1)}
    return heads if sum(map(len, heads.values())) < 2 * HEADS else {0: heads[0]}


@st.composite
def any_heads(draw) -> dict[int, list[int]]:
    heads = {layer: draw(st.lists(st.integers(0, HEADS - 1), unique=True)) for layer in (0, 1)}
    return heads if sum(map(len, heads.values())) < 2 * HEADS else {1: heads[1]}


@pytest.mark.slow
@settings(max_examples=30)
@given(grouped_heads())
def test_any_heads_of_llama(heads: dict):
    assert_masked_equals_sliced("llama, groups, sdpa", heads)


@pytest.mark.slow
@settings(max_examples=30)
@given(any_heads())
def test_any_heads_of_bert(heads: dict):
    assert_masked_equals_sliced("bert, sdpa", heads)


def assert_masked_equals_sliced(name: str, heads: dict):
    model, batch = FAMILIES[name].model(), FAMILIES[name].batch()
    assert_equal_step(masked(model, heads), pruned(model, heads), batch, survivors(model, heads))
