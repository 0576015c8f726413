"""Which heads are chosen: against brute force, over random importance, targets, groups and layers."""

import copy
import functools
import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention

from attnwatch import ConfigurationError, PruningPlan, choose_heads, prune_heads
from tests.support.models import gpt2, llama

Units = list[tuple[int, ...]]
"""Heads of a layer that can only go together."""


@functools.cache
def plain(*num_heads: int) -> nn.Module:
    """Layers of so many heads, each with its own keys and values."""
    return nn.ModuleList(nn.MultiheadAttention(2 * number, number) for number in num_heads)


@functools.cache
def grouped(num_heads: int, num_key_value_heads: int, layers: int = 2) -> nn.Module:
    heads = {"num_attention_heads": num_heads, "num_key_value_heads": num_key_value_heads}
    config = hf.LlamaConfig(hidden_size=2 * num_heads, head_dim=2, **heads)
    return nn.ModuleList(LlamaAttention(config, layer) for layer in range(layers))


def unit_sets(model: nn.Module, importance: dict[str, Tensor], grouping: str) -> dict[str, Units]:
    """What can go, by definition."""
    result = {}
    for site, values in importance.items():
        config = getattr(model.get_submodule(site), "config", None)
        num_groups = getattr(config, "num_key_value_heads", len(values))
        groups = torch.arange(len(values)).view(num_groups, -1).tolist()
        if grouping == "within" and num_groups < len(values):
            ranked = [sorted(group, key=lambda head: values[head].item()) for group in groups]
            groups = [tuple(sorted(heads)) for heads in zip(*ranked, strict=True)]
        result[site] = [tuple(group) for group in groups]
    return result


def brute_force(units: dict[str, Units], importance: dict[str, Tensor], budget: int, min_heads: int) -> dict:
    """Of all that may go together as many heads as possible, the least important in all."""
    every = [
        (site, unit, importance[site][list(unit)].mean().item()) for site, of_site in units.items() for unit in of_site
    ]
    best = (0, 0.0, {})
    for number in range(len(every) + 1):
        for chosen in itertools.combinations(every, number):
            gone = {site: [] for site in units}
            for site, unit, _ in chosen:
                gone[site] += unit
            size, total = sum(map(len, gone.values())), sum(value for _, _, value in chosen)
            is_allowed = all(len(importance[site]) - len(heads) >= min_heads for site, heads in gone.items() if heads)
            if is_allowed and size <= budget and (-size, total) < best[:2]:
                best = (-size, total, gone)
    return {site: tuple(sorted(heads)) for site, heads in best[2].items() if heads}


def drawn(data: st.DataObject, model: nn.Module) -> dict[str, Tensor]:
    """Different numbers for all heads, of both signs."""
    num_heads = PruningPlan.of(model).num_heads
    values = torch.tensor(data.draw(st.permutations(range(sum(num_heads.values()))))).float().square() - 7.5
    return dict(zip(num_heads, values.split(list(num_heads.values())), strict=True))


def left_after(model: nn.Module, plan: PruningPlan) -> list[int]:
    """Heads of each layer, counted after the plan was applied to a copy."""
    model = copy.deepcopy(model)
    plan.apply(model)
    after = PruningPlan.of(model)
    return [number - len(after.heads.get(site, ())) for site, number in after.num_heads.items()]


MODELS = {
    "plain": (plain, (3, 3, 3)),
    "layers of different sizes": (plain, (5, 1, 3)),
    "groups of two": (grouped, (8, 4)),
    "groups of three": (grouped, (6, 2, 3)),
    "multi-query": (grouped, (4, 1)),
}
each_model = pytest.mark.parametrize(("build", "sizes"), MODELS.values(), ids=MODELS)


@pytest.mark.parametrize("grouping", ["group", "within"])
@each_model
@settings(max_examples=25)
@given(data=st.data(), min_heads=st.integers(0, 3), extra=st.sampled_from([0.0, 0.4, 0.9]))
def test_global_ranking_removes_exactly_the_least_important(build, sizes, grouping, data, min_heads, extra):
    model = build(*sizes)
    importance = drawn(data, model)
    total = sum(map(len, importance.values()))
    number = data.draw(st.integers(2, total - 1))
    options = {"grouping": grouping, "min_heads": min_heads}
    plan = choose_heads(model, importance, target=(number + extra) / total, **options)
    assert dict(plan.heads) == brute_force(unit_sets(model, importance, grouping), importance, number, min_heads)
    assert choose_heads(model, importance, target=number, **options) == plan


@pytest.mark.parametrize("ranking", ["global", "layer", "equal"])
@each_model
@settings(max_examples=12)
@given(data=st.data(), min_heads=st.integers(0, 2), grouping=st.sampled_from(["auto", "group", "within"]))
def test_never_more_than_the_target_and_never_below_the_floor(build, sizes, ranking, data, min_heads, grouping):
    """Also where heads are gone already; and what is chosen can be removed."""
    model = copy.deepcopy(build(*sizes))
    options = {"grouping": grouping, "ranking": ranking, "min_heads": min_heads}
    total = sum(PruningPlan.of(model).num_heads.values())
    first, second = sorted(data.draw(st.tuples(*[st.floats(0.05, 0.95)] * 2)))
    at_once = left_after(model, choose_heads(model, drawn(data, model), target=second, **options))
    choose_heads(model, drawn(data, model), target=first, **options).apply(model)
    before = left_after(model, PruningPlan({}, PruningPlan.of(model).num_heads))
    after = left_after(model, choose_heads(model, drawn(data, model), target=second, **options))
    floors = [min(min_heads, number) for number in PruningPlan.of(model).num_heads.values()]
    for left, most in ((before, first), (after, second)):
        assert total - sum(left) <= most * total + 1e-6
        assert all(number >= floor for number, floor in zip(left, floors, strict=True))
    assert all(number <= number_before for number, number_before in zip(after, before, strict=True))
    assert ranking == "global" or after == at_once


@pytest.mark.parametrize("ranking", ["global", "layer", "equal"])
@settings(max_examples=20)
@given(data=st.data())
def test_two_steps_are_as_good_as_one(ranking, data):
    model = copy.deepcopy(plain(4, 4, 4))
    importance = drawn(data, model)
    at_once = choose_heads(model, importance, target=0.75, ranking=ranking)
    choose_heads(model, importance, target=0.5, ranking=ranking).apply(model)
    choose_heads(model, importance, target=0.75, ranking=ranking).apply(model)
    assert PruningPlan.of(model) == at_once
    assert not choose_heads(model, importance, target=0.75, ranking=ranking).heads


@each_model
@settings(max_examples=20)
@given(data=st.data(), target=st.floats(0.05, 0.95))
def test_layer_ranking_removes_the_least_important_of_each_layer(build, sizes, data, target):
    model = build(*sizes)
    importance = drawn(data, model)
    plan = choose_heads(model, importance, target=target, ranking="layer", grouping="within", min_heads=0)
    units = unit_sets(model, importance, "within")
    for site, values in importance.items():
        number = math.floor(target * len(values)) // len(units[site][0])
        ranked = sorted(units[site], key=lambda unit: values[list(unit)].mean().item())
        expected = sorted(head for unit in ranked[:number] for head in unit)
        assert list(plan.heads.get(site, ())) == expected


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), target=st.floats(0.05, 0.95), data=st.data())
def test_equal_ranking_leaves_all_layers_alike(sizes, target, data):
    model = plain(*sizes)
    plan = choose_heads(model, drawn(data, model), target=target, ranking="equal")
    left = left_after(model, plan)
    most = max(left)
    assert left == [min(size, most) for size in sizes]
    fewer = sum(max(size - (most - 1), 0) for size in sizes)
    assert most == 1 or fewer > target * sum(sizes)  # with one head less everywhere it would be too many


def test_sites_without_importance_stay_and_do_not_count():
    model = plain(4, 4, 4)
    values = {"1": torch.tensor([3.0, 1.0, 2.0, 4.0])}
    plan = choose_heads(model, values, target=0.5)
    assert choose_heads(model, values, target=2) == plan
    assert dict(plan.heads) == {"1": (1, 2)}
    assert dict(plan.num_heads) == {"0": 4, "1": 4, "2": 4}


def test_what_is_gone_needs_no_importance():
    model = copy.deepcopy(plain(4, 4))
    prune_heads(model, {0: [1, 2, 3]})
    values = {"0": torch.tensor([9.0, torch.nan, torch.inf, torch.nan]), "1": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert dict(choose_heads(model, values, target=0.5).heads) == {"1": (0,)}
    assert dict(choose_heads(model, values, target=5, min_heads=0).heads) == {"1": (0, 1)}


def test_groups_of_llama_by_grouping():
    values = {"0": torch.tensor([0.0, 5.0, 1.0, 2.0]), "1": torch.tensor([9.0] * 4)}
    cases = {"group": (2, 3), "auto": (2, 3), "within": (0, 2)}
    for grouping, expected in cases.items():
        plan = choose_heads(grouped(4, 2), values, target=2, grouping=grouping)
        assert dict(plan.heads) == {"0": expected}
    multi_query = {"auto": {"0": (0, 2, 3)}, "within": {"0": (0, 2, 3)}, "group": {}}
    for grouping, expected in multi_query.items():
        plan = choose_heads(grouped(4, 1), values, target=3, grouping=grouping)
        assert dict(plan.heads) == expected
    without = choose_heads(grouped(4, 1), values, target=4, grouping="group", min_heads=0)
    assert dict(without.heads) == {"0": (0, 1, 2, 3)}


def test_groups_of_different_sizes_are_ranked_by_their_mean():
    model = nn.ModuleList([*grouped(4, 2, layers=1), *plain(4)])
    values = {"0": torch.tensor([1.0, 1.0, 5.0, 5.0]), "1": torch.tensor([1.5, 3.0, 4.0, 6.0])}
    assert dict(choose_heads(model, values, target=2).heads) == {"0": (0, 1)}
    assert dict(choose_heads(model, values, target=3).heads) == {"0": (0, 1), "1": (0,)}


@pytest.mark.parametrize("number", [29, 57, 58])
def test_fraction_that_is_no_binary_number_removes_what_it_says(number: int):
    model = plain(100)
    assert len(choose_heads(model, {"0": torch.arange(100.0)}, target=number / 100).heads["0"]) == number


LAYERS_OF_GPT2 = {f"transformer.h.{layer}.attn": torch.arange(4.0) for layer in range(2)}
WRONG_VALUES = {
    "nan": ({"transformer.h.0.attn": torch.tensor([1.0, torch.nan, 2.0, 3.0])}, "`importance` .*h.0.attn.* not finite"),
    "too few": ({"transformer.h.0.attn": torch.arange(3.0)}, r"one number for each of the 4 heads .* got shape \[3\]"),
    "wrong rank": ({"transformer.h.0.attn": torch.ones(4, 1)}, r"got shape \[4, 1\]"),
    "unknown site": (
        {"h.0.attn": torch.arange(4.0)},
        "`importance`: 'h.0.attn' is not a site whose heads can be removed",
    ),
    "empty": ({}, "`importance` must have numbers for the heads of some sites, got {}"),
    "no mapping": ([1.0], r"`importance` must have numbers for the heads of some sites, got \[1.0\]"),
}


@pytest.mark.parametrize(("importance", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
@pytest.mark.parametrize("target", [0.5, 2])
def test_wrong_importance_is_named(importance, message: str, target):
    with pytest.raises(ConfigurationError, match=message):
        choose_heads(gpt2(), importance, target=target)


@pytest.mark.parametrize("target", [0, 1, 0.0, 1.0, 1.5, -0.5, -3, True, None, "0.5", math.nan, math.inf, np.int64(3)])
def test_wrong_target_is_named(target):
    with pytest.raises(
        ConfigurationError, match="`target` must be the fraction of heads to remove, between 0 and 1, or"
    ):
        choose_heads(gpt2(), LAYERS_OF_GPT2, target=target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 8}, "`target`: 8 of 8 heads; at least one must stay"),
        ({"ranking": "best"}, "`ranking` must be one of 'global', 'layer', 'equal', got 'best'"),
        ({"grouping": None}, "`grouping` must be one of 'auto', 'group', 'within', got None"),
        ({"min_heads": -1}, "`min_heads` must be an integer of at least 0, got -1"),
        ({"min_heads": True}, "`min_heads` must be an integer of at least 0, got True"),
    ],
)
def test_wrong_options_are_named(options, message: str):
    with pytest.raises(ConfigurationError, match=message):
        choose_heads(gpt2(), LAYERS_OF_GPT2, **{"target": 0.5, **options})


def test_nothing_is_changed():
    model = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    values = {site: torch.arange(4.0) for site in PruningPlan.of(model).num_heads}
    choose_heads(model, values, target=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(of_site, torch.arange(4.0)) for of_site in values.values())
