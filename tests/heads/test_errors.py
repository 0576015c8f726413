"""What can't be pruned is refused with a reason, and then nothing has changed."""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, Adafactor, AdamW, Optimizer

from attnwatch import ConfigurationError, prune_heads
from tests.support.head_models import FAMILIES, causal, output
from tests.support.models import HEADS, llama
from tests.support.snapshot import assert_unchanged, snapshot

ATTENTION = "model.layers.0.self_attn"


def trained(build: Callable = llama, make: Callable = AdamW) -> tuple[nn.Module, Optimizer]:
    model = build()
    optimizer = make(model.parameters(), lr=0.01)
    output(model, causal()).square().mean().backward()
    optimizer.step()
    return model, optimizer


WRONG_HEADS = {
    "no such head": ({0: [4]}, rf"'{ATTENTION}' has no head 4; its heads are 0 to 3"),
    "negative head": ({0: [-1]}, "has no head -1"),
    "removed before": ({1: [2]}, r"head 2 of 'model.layers.1.self_attn' was already removed; it has \(0, 1\)"),
    "named twice": ({0: [1, 2, 1]}, "names a head twice"),
    "bool": ({0: [True]}, r"must be a list of integers, got \[True\]"),
    "text": ({0: "01"}, "must be a list of integers, got '01'"),
    "texts": ({0: ["1"]}, "must be a list of integers"),
    "float": ({0: [1.0]}, "must be a list of integers"),
    "no list": ({0: 1}, "must be a list of integers, got 1"),
    "no mapping": ([0, 1], "must map sites to lists of heads, got list"),
    "no such site": ({"model.layers.7": [0]}, f"there is no site 'model.layers.7'; the model has: {ATTENTION}, "),
    "no such layer": ({2: [0]}, "there is no layer 2, the model has 0 to 1"),
    "negative layer": ({-1: [0]}, "there is no layer -1"),
    "bool as layer": ({True: [0]}, "there is no site True"),
    "twice by name and number": ({0: [0, 1], ATTENTION: [2, 3]}, "names a site twice"),
    "unequal groups": ({0: [0]}, r"would be read by \[1, 2\] query heads.*\[\[0, 1\], \[2, 3\]\]"),
    "all heads": ({0: range(4), 1: [0, 1]}, "all heads of the model: at least one must stay"),
    "one good, one wrong": ({1: [0], 0: [1]}, "would be read by"),
}


@pytest.mark.parametrize(("heads", "message"), WRONG_HEADS.values(), ids=WRONG_HEADS)
def test_wrong_heads(heads: Any, message: str):
    model, optimizer = trained()
    prune_heads(model, {1: [2, 3]}, optimizers=[optimizer])
    before = snapshot(model, optimizer)
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(model, heads, optimizers=[optimizer])
    assert_unchanged(before, model, optimizer)


def other_model() -> Optimizer:
    return AdamW(llama().parameters())


WRONG_OPTIMIZERS = {
    "of another model": (lambda model: [other_model()], "this AdamW holds none of the model's parameters"),
    "not in a list": (lambda model: AdamW(model.parameters()), "must be a list of optimizers, got AdamW"),
    "no optimizer": (lambda model: [model], "must be torch optimizers, got LlamaForCausalLM"),
    "lbfgs": (lambda model: [LBFGS(model.parameters())], "LBFGS keeps one vector for all parameters"),
    "empty parameters": (
        lambda model: [Adafactor(model.parameters())],
        "Adafactor does not work with empty parameters",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG_OPTIMIZERS.values(), ids=WRONG_OPTIMIZERS)
def test_wrong_optimizers(make: Callable, message: str):
    model, optimizer = trained()
    before = snapshot(model, optimizer)
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(model, {0: range(HEADS)}, optimizers=make(model))
    assert_unchanged(before, model, optimizer)


class Interrupted(Exception):
    pass


class FailingList(list):
    """Fails once, when its last entry is set."""

    has_failed = False

    def __setitem__(self, index, value):
        if index == len(self) - 1 and not self.has_failed:
            self.has_failed = True
            raise Interrupted
        super().__setitem__(index, value)


class FailingState(collections.defaultdict):
    """Fails once, when the state of the third parameter is set."""

    num_sets = 0

    def __setitem__(self, parameter, state):
        self.num_sets += 1
        if self.num_sets == 3:
            raise Interrupted
        super().__setitem__(parameter, state)


@pytest.mark.parametrize("name", ["phi3, sdpa", "t5, sdpa", "gpt2, sdpa", "nanogpt"])
@pytest.mark.parametrize("where", ["list of parameters", "state"])
def test_failure_in_the_middle(name: str, where: str):
    family = FAMILIES[name]
    model = family.model()
    optimizer = AdamW([p for p in model.parameters() if p.ndim == 2], lr=0.01)
    expected = output(model, family.batch())
    expected.square().mean().backward()
    optimizer.step()
    group = optimizer.param_groups[0]
    if where == "state":
        optimizer.state = FailingState(dict, optimizer.state)
    else:
        of_attention = [p for name, p in model.named_parameters() if p.ndim == 2 and "att" in name.lower()]
        others = [p for p in group["params"] if not any(p is other for other in of_attention)]
        group["params"] = FailingList(others + of_attention)
    expected, before = output(model, family.batch()), snapshot(model, optimizer)
    with pytest.raises(Interrupted):
        prune_heads(model, family.heads, optimizers=[optimizer])
    assert_unchanged(before, model, optimizer)
    assert torch.equal(output(model, family.batch()), expected)
    prune_heads(model, family.heads, optimizers=[optimizer])
