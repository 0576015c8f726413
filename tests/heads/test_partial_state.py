"""State dicts that hold a part of a model: they are loaded whole, or refused with the model as it was."""

import copy
import pickle
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnwatch import ConfigurationError, PruningPlan, accept_pruned_state, prune_heads
from attnwatch.heads import HeadMap
from attnwatch.heads.removed import RemovedHeads
from attnwatch.heads.state import StateLoader
from tests.support.equality import assert_equal_models
from tests.support.head_models import EVERYWHERE, GROUPS, MIXED, PLAIN, with_lora
from tests.support.models import bert, gpt2, llama
from tests.support.saved_models import other, pruned, result
from tests.support.snapshot import assert_unchanged, snapshot

BUILDS = {
    "llama": (llama, GROUPS, MIXED),
    "bert": (bert, {0: [1]}, {0: [1, 2], 1: [0]}),
    "gpt2": (gpt2, {0: [1]}, {0: [0, 1], 1: [3]}),
    "lora": (with_lora(llama, *EVERYWHERE), {0: [2, 3]}, {0: [2, 3], 1: [0, 1]}),
}
# Of the model, and of the state: before a cut, after it, other heads.
PAIRS = {
    "grows": (lambda _, more: (more, None)),
    "grows a little": (lambda less, more: (more, less)),
    "shrinks": (lambda _, more: (None, more)),
    "shrinks a little": (lambda less, more: (less, more)),
    "same": (lambda _, more: (more, more)),
}


def models_of(build: str, pair: str) -> tuple[nn.Module, nn.Module]:
    """The model that loads, and the one whose state it is."""
    make, *cuts = BUILDS[build]
    ours, theirs = PAIRS[pair](*cuts)
    model, source = make(), other(make)
    for each, heads in ((model, ours), (source, theirs)):
        if heads:
            prune_heads(each, heads)
    return model, source


def refused(model: nn.Module, state: dict) -> str:
    """Why it can't be loaded; empty where it was."""
    try:
        model.load_state_dict(state, strict=False)
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.slow
@settings(max_examples=40)
@given(st.sampled_from(list(BUILDS)), st.sampled_from(list(PAIRS)), st.data())
def test_any_part_is_loaded_or_refused(build: str, pair: str, data):
    model, source = models_of(build, pair)
    accept_pruned_state(model)
    state, site = source.state_dict(), next(iter(HeadMap.of(model).sites))
    keys = sorted(name for name in state if name.startswith(site.rpartition(".")[0]))
    dropped = data.draw(st.sets(st.sampled_from(keys), min_size=1, max_size=len(keys)))
    part = {name: value for name, value in state.items() if name not in dropped}
    before, held = snapshot(model), {name: value.clone() for name, value in model.state_dict().items()}
    refusal = refused(model, part)
    if refusal:
        assert site in refusal
        assert "Nothing was changed" in refusal
        assert_unchanged(before, model)
        return
    now = model.state_dict()
    for name, value in part.items():
        assert torch.equal(now[name], value), name
    for name in dropped & now.keys() & held.keys():  # what the state does not have stays, cut at most
        assert now[name].shape == state[name].shape or torch.equal(now[name], held[name]), name
        assert set(now[name].flatten().tolist()) <= set(held[name].flatten().tolist()), name
    result(model)


@pytest.mark.parametrize("build", ["llama", "bert", "gpt2"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("size", [1, 5])
def test_parts_in_any_order_add_up(build: str, pair: str, size: int):
    """A loader that waits for the rest, as of a sharded checkpoint."""
    model, source = models_of(build, pair)
    loader = StateLoader(waits=True)
    loader.attach(model)
    state = source.state_dict()
    names = random.sample(sorted(state), len(state))
    for start in range(0, len(names), size):
        model.load_state_dict({name: state[name] for name in names[start : start + size]}, strict=False)
    loader.finish()
    assert_equal_models(model, source)


def test_what_does_not_come_is_named():
    model, source = models_of("llama", "grows")
    loader = StateLoader(waits=True)
    loader.attach(model)
    before = snapshot(model)
    state = source.state_dict()
    model.load_state_dict({name: state[name] for name in state if "1.self_attn.q_proj" in name}, strict=False)
    assert_unchanged(before, model)
    with pytest.raises(ConfigurationError, match=r"not complete: it has only a part of model.layers.1.self_attn"):
        loader.finish()
    loader.finish()


def test_adapters_alone_are_refused_with_the_reason():
    model, source = models_of("lora", "grows")
    accept_pruned_state(model)
    adapters = {name: value for name, value in source.state_dict().items() if "lora" in name}
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=r"weights of \[2, 3\] are neither .* missing are .*q_proj.base_layer"):
        model.load_state_dict(adapters, strict=False)
    assert_unchanged(before, model)


def test_adapters_come_back_with_what_was_removed():
    model, source = with_lora(llama, *EVERYWHERE)(), with_lora(llama, *EVERYWHERE)()
    removed, stages = RemovedHeads(), []
    StateLoader(removed).attach(model)
    for heads in ({0: [2, 3]}, {1: [0, 3]}):
        stages.append(copy.deepcopy(model))
        removed.note(model)
        prune_heads(model, heads)
    stages.append(copy.deepcopy(model))
    for stage in (0, 1, 2, 0):
        adapters = {name: value * 2 for name, value in stages[stage].state_dict().items() if "lora" in name}
        model.load_state_dict(adapters, strict=False)
        stages[stage].load_state_dict(adapters, strict=False)
        assert_equal_models(model, stages[stage])
        assert torch.equal(result(model), result(stages[stage]))
    assert PruningPlan.of(source).heads == {}


def test_another_model_is_refused_before_heads_are_touched():
    model, source = models_of("llama", "shrinks")
    accept_pruned_state(model)
    state = source.state_dict() | {"lm_head.weight": torch.zeros(3, 32)}
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=r"differs in other sizes too: lm_head.weight is \[3, 32\] there"):
        model.load_state_dict(state, strict=False)
    assert_unchanged(before, model)


@pytest.mark.parametrize("kept", [[0.0, 9.0], [1.0, 0.0], [0.0, 0.0]], ids=str)
def test_heads_that_cannot_be_are_refused(kept: list):
    model, source = models_of("llama", "shrinks")
    accept_pruned_state(model)
    state = source.state_dict() | {"model.layers.0.self_attn.kept_heads": torch.tensor(kept)}
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=r"names the heads \[.*the unpruned model has 0 to 3 there"):
        model.load_state_dict(state)
    assert_unchanged(before, model)


def test_models_that_wait_are_copied_and_pickled():
    """Copies know nothing of the run, and accept states for themselves; pickles load without attnwatch."""
    model, source = models_of("bert", "grows")
    StateLoader(RemovedHeads(), lambda: None, waits=True).attach(model)
    duplicate = copy.deepcopy(model)
    duplicate.load_state_dict(source.state_dict())
    assert_equal_models(duplicate, source)
    assert b"attnwatch.heads.state" not in pickle.dumps(model)


def test_the_later_loader_takes_over():
    model = bert()
    accept_pruned_state(model)
    for _ in range(3):
        StateLoader(waits=True).attach(model)
    assert len(model._load_state_dict_pre_hooks) == 1
    model.load_state_dict(pruned(bert, PLAIN).state_dict())
    assert PruningPlan.of(model).num_removed == 3
