"""Forward passes that are not a call of the whole model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnwatch

WIDTH, TOKENS, NUM_IDS = 32, 12, 40


class Block(nn.Module):
    """Causal self-attention."""

    def __init__(self, *, leaks=False):
        super().__init__()
        self.norm, self.projection, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.is_causal = not leaks

    def forward(self, x):
        query, key, value = self.projection(self.norm(x)).unflatten(-1, (3, 4, -1)).transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        return x + self.out(attended.transpose(1, 2).flatten(2))


class HandWritten(Block):
    """The same without a known attention function."""

    def forward(self, x):
        query, key, value = self.projection(self.norm(x)).chunk(3, -1)
        scores = query @ key.mT / WIDTH**0.5
        mask = torch.ones_like(scores, dtype=torch.bool).tril()
        return x + self.out((scores.masked_fill(~mask, -torch.inf) if self.is_causal else scores).softmax(-1) @ value)


class Network(nn.Module):
    """Language model whose parts can be called in turn."""

    def __init__(self, blocks):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(NUM_IDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(WIDTH, NUM_IDS)

    def forward(self, ids):
        return self.head(self.blocks(self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))))


class Derived(Network):
    """Model with an inherited forward."""


def called(model, ids):
    return model(ids)


def called_directly(model, ids):
    return model.forward(ids)


def called_in_turn(model, ids):
    return model.head(model.blocks(model.tokens(ids) + model.positions(torch.arange(ids.shape[1]))))


def train(model, call, *, keep=None):
    """Return the checkup of a training as a language model in which `call` computes the logits."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(8):
            ids = torch.randint(0, NUM_IDS, (4, TOKENS))
            with checkup.step(step):
                logits = call(model, ids)
                F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
                if keep is not None:
                    keep.append(copy.deepcopy(model))
            optimizer.step()
            optimizer.zero_grad()
    return checkup


@pytest.mark.parametrize("kind", [Network, Derived])
@pytest.mark.parametrize("call", [called, called_directly])
@pytest.mark.parametrize("leaks", [True, False])
def test_leak_in_a_forward_that_is_called_directly(kind, call, leaks):
    torch.manual_seed(0)
    checkup = train(kind([Block(leaks=leaks), Block()]), call)
    assert [finding.kind.value for finding in checkup.findings] == ["future_leak"] * leaks
    assert {"future_leak", "blind_attention"} <= checkup.answered


def test_attention_behind_other_parts_is_checked():
    torch.manual_seed(0)
    model = Network([Block(), Block()])
    assert not train(model, called_in_turn).findings
    for block in model.blocks:
        block.forward = lambda x: x + F.scaled_dot_product_attention(*[x[:, :, None]] * 3)[:, :, 0]
    assert [finding.kind.value for finding in train(model, called_in_turn).findings] == ["blind_attention"]


def test_parts_that_come_before_the_attention_prove_nothing():
    torch.manual_seed(0)
    checkup = train(Network([HandWritten(leaks=True)]), called_in_turn)
    assert "future_leak" not in checkup.answered
    assert "no token sees another in the first (tokens)" in checkup.skipped["future_leak"]
    assert "future_leak" in train(Network([HandWritten()]), called).answered


def test_order_is_not_judged_behind_the_positions():
    torch.manual_seed(0)
    answered = train(Network([Block(leaks=True)]), called_in_turn).answered
    assert "blind_attention" in answered
    assert not {"order_ignored", "future_leak"} & answered


@pytest.mark.parametrize("kind", [Network, Derived])
def test_direct_calls_change_neither_training_nor_class(kind):
    torch.manual_seed(0)
    model, forwards, copies = kind([Block(), Block()]), (vars(kind).get("forward"), kind.forward), []
    unwatched = copy.deepcopy(model)
    torch.manual_seed(1)
    train(model, called_directly, keep=copies)
    assert (vars(kind).get("forward"), kind.forward) == forwards
    assert torch.equal(copies[-1](torch.arange(4)[None]), copies[-1].forward(torch.arange(4)[None]))
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(unwatched.parameters(), 1e-3)
    for _ in range(8):
        ids = torch.randint(0, NUM_IDS, (4, TOKENS))
        F.cross_entropy(unwatched.forward(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(map(torch.equal, model.parameters(), unwatched.parameters()))


def test_errors_in_direct_calls_are_those_of_the_model():
    model = Network([Block()])
    with attnwatch.TrainingCheckup(model) as checkup, pytest.raises(IndexError), checkup.step(0):
        model.forward(torch.full((2, 4), NUM_IDS))
    assert "forward" in vars(Network)
    assert not hasattr(Network.forward, "__wrapped__")


class SkipsLayers(Network):
    """Model that computes some layers in vain."""

    def __init__(self, blocks, skips):
        super().__init__(blocks)
        self.skips = skips

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for number, block in enumerate(self.blocks):
            after = block(x)
            x = x if self.skips(self, number) else after
        return self.head(x)


@pytest.mark.parametrize(
    ("skips", "found"),
    [
        (lambda model, number: number == 1, ["no_gradient"]),
        (lambda model, number: number == 1 and model.training, []),  # stochastic depth
    ],
)
def test_layers_that_are_skipped_in_training_only(skips, found):
    torch.manual_seed(0)
    checkup = train(SkipsLayers([Block(), Block(), Block()], skips), called)
    assert [finding.kind.value for finding in checkup.findings if not finding.is_note] == found
