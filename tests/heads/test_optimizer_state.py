"""Optimizers go on with what is left of a model as if the rest had only been masked."""

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

from attnwatch import AttnwatchWarning, prune_heads
from tests.support.head_models import MIXED, Family, mask, survivors
from tests.support.optimizer_training import GPT2, LLAMA, assert_equal_training, backward, step, trained

# Element by element, so that what is masked has no influence on what is left.
OPTIMIZERS = {
    "AdamW": partial(AdamW, lr=0.02, weight_decay=0.1),
    "AdamW, foreach": partial(AdamW, lr=0.02, foreach=True),
    "AdamW, fused": partial(AdamW, lr=0.02, fused=True),
    "AdamW, amsgrad": partial(AdamW, lr=0.02, amsgrad=True, maximize=True),
    "Adam, tensor learning rate": partial(Adam, lr=torch.tensor(0.02)),
    "SGD": partial(SGD, lr=0.02),
    "SGD, momentum": partial(SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    "RMSprop": partial(RMSprop, lr=0.01, centered=True, momentum=0.9),
    "Adagrad": partial(Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "Adadelta": partial(Adadelta, lr=1.0),
    "Adamax": partial(Adamax, lr=0.02),
    "NAdam": partial(NAdam, lr=0.02),
    "RAdam": partial(RAdam, lr=0.02),
    "Rprop": partial(Rprop, lr=0.01),
    "ASGD": partial(ASGD, lr=0.02),
}


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=["qwen2", "gpt2"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_equal_those_of_the_masked_model(make: Callable, family: Family):
    model, optimizer = trained(make, family)
    entries = survivors(model, family.heads)
    masked_model, masked_optimizer = copy.deepcopy((model, optimizer))
    prune_heads(model, family.heads, optimizers=[optimizer])
    for _ in range(3):
        mask(masked_model, family.heads)
        step(model, optimizer, family)
        step(masked_model, masked_optimizer, family)
        assert_equal_training((model, optimizer), (masked_model, masked_optimizer), entries)


def test_gradients_are_cut_with_their_parameters():
    """Gradients are accumulated over a cut."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    masked_model, masked_optimizer = copy.deepcopy((model, optimizer))
    for each in (model, masked_model):
        each.zero_grad()
        backward(each)
    entries = survivors(model, MIXED)
    prune_heads(model, MIXED, optimizers=[optimizer])
    mask(masked_model, MIXED)
    for each, of_each in ((model, optimizer), (masked_model, masked_optimizer)):
        backward(each)
        of_each.step()
    assert_equal_training((model, optimizer), (masked_model, masked_optimizer), entries)


def test_groups_keep_their_order_and_options():
    model = LLAMA.model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices = [parameter for parameter in names if parameter.ndim == 2]
    vectors = [parameter for parameter in names if parameter.ndim == 1]
    groups = [{"params": matrices[::-1], "weight_decay": 0.2, "mine": "kept"}, {"params": vectors, "lr": 0.5}]
    optimizer = AdamW(groups, lr=0.1, betas=(0.8, 0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    step(model, optimizer)
    scheduler.step()
    held = optimizer.param_groups
    before = [
        ([names[p] for p in group["params"]], {key: group[key] for key in group if key != "params"}) for group in held
    ]
    prune_heads(model, MIXED, optimizers=[optimizer])
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert optimizer.param_groups is held
    for group, (order, options) in zip(held, before, strict=True):
        assert [names[parameter] for parameter in group["params"]] == order
        assert {key: group[key] for key in group if key != "params"} == options
    scheduler.step()
    assert [group["lr"] for group in held] == [0.025, 0.125]


def test_parameters_of_two_optimizers():
    model = LLAMA.model()
    parameters = dict(model.named_parameters())
    attention = {name for name in parameters if "self_attn" in name}
    optimizers = [
        SGD([parameters[name] for name in attention], lr=0.1, momentum=0.9),
        AdamW([parameters[name] for name in parameters if name not in attention or "q_proj" in name]),
    ]
    for optimizer in optimizers:
        step(model, optimizer)
    prune_heads(model, MIXED, optimizers=(optimizer for optimizer in optimizers))
    ours = set(model.parameters())
    for optimizer in optimizers:
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        assert held <= ours
        assert set(optimizer.state) == held
    assert len(optimizers[0].param_groups[0]["params"]) == len(attention)


@pytest.mark.parametrize("make", [OPTIMIZERS["AdamW"], OPTIMIZERS["SGD, momentum"]], ids=["AdamW", "SGD"])
def test_parameters_change_and_old_ones_are_gone(make: Callable):
    model, optimizer = trained(make)
    old = {name: weakref.ref(parameter) for name, parameter in model.named_parameters()}
    stored = [weakref.ref(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    prune_heads(model, MIXED, optimizers=[optimizer])
    gc.collect()
    parameters = dict(model.named_parameters())
    replaced = {name for name in parameters if old[name]() is not parameters[name]}
    assert replaced == {name for name in parameters if "self_attn" in name}
    assert all(old[name]() is None for name in replaced)
    num_stored = len(stored) // len(parameters)
    assert sum(state() is not None for state in stored) == num_stored * (len(parameters) - len(replaced))
    assert set(optimizer.state) == set(parameters.values())
    assert [p for group in optimizer.param_groups for p in group["params"]] == list(parameters.values())
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    step(model, optimizer)
    assert all(not torch.equal(before[name], parameters[name]) for name in parameters)


def test_frozen_parameters_stay_frozen_and_attributes_stay():
    model = LLAMA.model()
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight.requires_grad_(False)
    attention.k_proj.weight.note = "mine"
    prune_heads(model, MIXED)
    assert not attention.q_proj.weight.requires_grad
    assert attention.k_proj.weight.requires_grad
    assert attention.k_proj.weight.note == "mine"


def test_state_that_cannot_be_cut_starts_anew():
    """Adafactor's sums over rows and columns; it keeps whole vectors, and what belongs to other parameters."""
    model, optimizer = trained(partial(Adafactor, lr=0.02))
    before = {name: dict(optimizer.state[parameter]) for name, parameter in model.named_parameters()}
    entries = survivors(model, MIXED)
    with pytest.warns(AttnwatchWarning, match="Adafactor keeps sums over whole rows or columns") as warned:
        prune_heads(model, MIXED, optimizers=[optimizer])
    assert len(warned) == 1
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter)
        if "self_attn" not in name:
            assert all(state[key] is value for key, value in before[name].items()), name
        elif parameter.ndim == 2:
            assert not state, name
        else:
            assert state["step"] == 3
            assert torch.equal(state["variance"], before[name]["variance"].take(entries[name])), name
    old = {name: parameter.clone() for name, parameter in model.named_parameters()}
    step(model, optimizer)
    assert all(not torch.equal(old[name], parameter) for name, parameter in model.named_parameters())


def test_state_of_lists_starts_anew():
    """Nothing is known about what is in them."""
    model, optimizer = trained(OPTIMIZERS["SGD, momentum"])
    for parameter in model.parameters():
        optimizer.state[parameter]["rotations"] = [torch.eye(len(parameter))]
    with pytest.warns(AttnwatchWarning, match="is reset"):
        prune_heads(model, MIXED, optimizers=[optimizer])
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert not any("self_attn" in names[parameter] for parameter in optimizer.state)


def test_layers_without_heads_are_stepped_over():
    model, optimizer = trained(OPTIMIZERS["AdamW, fused"])
    prune_heads(model, {0: range(4)}, optimizers=[optimizer])
    empty = model.model.layers[0].self_attn.o_proj.weight
    assert empty.shape == (32, 0)
    for _ in range(2):
        step(model, optimizer)
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
