"""State dicts of pruned models, loaded into models that have more heads, or others."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from attnwatch import PruningPlan, accept_pruned_state, prune_heads
from attnwatch.heads.state import StateLoader
from tests.support.contents import assert_unchanged, attributes, contents
from tests.support.equality import assert_equal_models
from tests.support.head_models import EVERYWHERE, features, with_lora
from tests.support.importance_models import encoder
from tests.support.models import HEADS, WIDTH, bert, gpt2, llama, t5, token_ids
from tests.support.saved_models import other, pruned, result

KINDS = {
    "llama": (llama, {0: [2, 3], 1: [0, 3]}),
    "bert": (bert, {0: [1], 1: [0, 1, 2]}),
    "gpt2": (gpt2, {1: [0, 1, 2, 3]}),
    "t5": (t5, {0: [1], 3: [0, 3], 5: [2]}),
    "torch": (encoder, {0: [1], 1: [2, 3]}),
    "module itself": (lambda: nn.MultiheadAttention(WIDTH, HEADS), {0: [0, 3]}),
    "lora": (with_lora(llama, *EVERYWHERE), {0: [2, 3]}),
}


class Task(nn.Module):
    """A module around a model, as a trainer's is."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.before = nn.Linear(2, 2)
        self.model = model


def attention(model: nn.Module) -> torch.Tensor:
    """What a model returns that transformers knows nothing of."""
    x = features(5).float()
    return model(x, x, x)[0] if isinstance(model, nn.MultiheadAttention) else model(x)


@pytest.mark.parametrize("accepts", ["model", "task", "both"])
@pytest.mark.parametrize(("build", "heads"), KINDS.values(), ids=KINDS)
def test_unpruned_model_takes_the_state_of_a_pruned_one(build, heads, accepts: str):
    trained, fresh = Task(pruned(build, heads)), Task(other(build))
    for name, module in (("model", fresh.model), ("task", fresh)):
        if accepts in (name, "both"):
            accept_pruned_state(module)
    fresh.load_state_dict(trained.state_dict())
    assert_equal_models(fresh, trained)
    outputs = [
        result(task.model) if hasattr(task.model, "config") else attention(task.model.eval())
        for task in (fresh, trained)
    ]
    assert torch.equal(*outputs)
    fresh.load_state_dict(trained.state_dict())  # and once more, into the pruned one
    assert_equal_models(fresh, trained)


def test_attention_by_itself():
    trained, fresh = (nn.MultiheadAttention(WIDTH, HEADS) for _ in range(2))
    prune_heads(trained, {0: [0, 3]})
    accept_pruned_state(fresh)
    fresh.load_state_dict(trained.state_dict())
    assert_equal_models(fresh, trained)


def test_state_of_a_model_that_was_pruned_twice():
    trained = pruned(bert, {0: [1]})
    once, twice = bert(), bert()
    accept_pruned_state(once)
    accept_pruned_state(twice)
    once.load_state_dict(trained.state_dict())
    prune_heads(trained, {0: [0], 1: [2]})
    for fresh in (once, twice):  # one that was pruned less, and one that was not
        fresh.load_state_dict(trained.state_dict())
        assert_equal_models(fresh, trained)


FURTHER = {
    "further": ({0: [2, 3], 1: [0]}, {0: [2, 3]}),
    "others": ({0: [0, 1]}, {0: [2, 3]}),
    "equally many others": ({0: [1]}, {0: [2]}),
    "pruned where the state is not": ({0: [2, 3]}, {}),
}


SEVERAL = {
    "bert": bert,
    "gpt2": gpt2,
    "t5": t5,
    "lora": with_lora(bert, "query", "key", "value", "dense"),
    "lora around a Conv1D": with_lora(gpt2, "c_attn", "c_proj", fan_in_fan_out=True),
    "torch": encoder,
}


@pytest.mark.parametrize("build", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize(("heads", "heads_of_state"), FURTHER.values(), ids=FURTHER)
def test_heads_that_are_gone_come_back(build, heads, heads_of_state):
    """As in a test of the best checkpoint, which is from before a cut; cutting goes on from there."""
    model, trained = pruned(build, heads), other(build)
    accept_pruned_state(model)
    if heads_of_state:
        prune_heads(trained, heads_of_state)
    model.load_state_dict(trained.state_dict())
    assert_equal_models(model, trained)
    assert str(model) == str(trained)
    ours, theirs = ({n: v for n, v in attributes(m).items() if not n.endswith("config")} for m in (model, trained))
    assert ours == theirs
    assert PruningPlan.of(model) == PruningPlan.of(trained)
    output = result if hasattr(model, "config") else attention
    assert torch.equal(output(model), output(trained))
    for each in (model, trained):
        prune_heads(each, {1: [1]})
    assert_equal_models(model, trained)
    assert torch.equal(output(model), output(trained))


def test_groups_that_are_gone_come_back():
    model, trained = pruned(llama, {0: [2, 3], 1: [0, 1]}), other(llama)
    accept_pruned_state(model)
    prune_heads(trained, {0: [0, 2]})  # one of each group
    model.load_state_dict(trained.state_dict())
    assert_equal_models(model, trained)
    assert torch.equal(result(model), result(trained))


def test_state_that_says_nothing_of_heads_is_left_alone():
    """Such as that of an adapter, or of another part of the model."""
    model = pruned(with_lora(llama, "q_proj", "up_proj"), {0: [2, 3]})
    accept_pruned_state(model)
    adapter = {name: value + 1 for name, value in model.state_dict().items() if "lora" in name}
    assert adapter
    model.load_state_dict(adapter, strict=False)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in adapter.items())


def test_unpruned_state_goes_on_to_load():
    model = bert()
    accept_pruned_state(model)
    model.load_state_dict(other(bert).state_dict())
    assert_equal_models(model, other(bert))


def test_handle_ends_it():
    model = bert()
    handle = accept_pruned_state(model)
    handle.remove()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(pruned(bert, {0: [1]}).state_dict())
    assert not PruningPlan.of(model).heads


def test_copy_accepts_for_itself():
    model = bert()
    accept_pruned_state(model)
    before, clone = contents(model), copy.deepcopy(model)
    clone.load_state_dict(pruned(bert, {0: [1]}).state_dict())
    assert PruningPlan.of(clone).heads
    assert_unchanged(model, before)


def test_optimizer_made_after_loading_takes_its_state():
    trained = pruned(gpt2, {0: [1, 2]})
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    resumed = gpt2()
    accept_pruned_state(resumed)
    step(trained, optimizer)
    resumed.load_state_dict(trained.state_dict())
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, its_optimizer in ((trained, optimizer), (resumed, resumed_optimizer)):
        step(model, its_optimizer)
    assert_equal_models(resumed, trained)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def test_optimizer_that_exists_goes_on_with_the_loaded_heads():
    """As Accelerate's `load_state` has it: the model first, then its optimizer, which was there before."""

    def step(model, optimizer, seed):
        model(input_ids=token_ids(seed=seed), labels=token_ids(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    whole = llama()
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    step(whole, optimizer, 0)
    prune_heads(whole, {0: [0, 1], 1: [2, 3]}, optimizers=[optimizer])
    step(whole, optimizer, 1)
    states = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    rest = llama()
    accept_pruned_state(rest)
    resumed = torch.optim.AdamW(rest.parameters(), lr=1e-2)
    for each, state in zip((rest, resumed), states, strict=True):
        each.load_state_dict(state)
    for model, its in ((whole, optimizer), (rest, resumed)):
        step(model, its, 2)
    assert all(torch.equal(value, rest.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not any(torch.equal(states[0][name], value) for name, value in rest.named_parameters())


@pytest.mark.parametrize("attach", [accept_pruned_state, lambda model: StateLoader().attach(model)])
def test_model_that_accepts_states_is_freed(attach):
    model = llama()
    attach(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
