"""Modules whose forwards have no Python code: TorchScript, partial functions, functions in C, and no forward at all."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch import AttentionRecorder, TrainingCheckup
from attnwatch.capture import locals_of_forward, names_in_forward
from attnwatch.utils.forwards import forward_function, function_of, parameters_of
from tests.support.models import WIDTH, FusedAttention, token_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
STEPS = 8


class Counting(nn.Module):
    """Linear layer that counts its forwards."""

    num_calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("num_calls", torch.zeros(()))
        self.num_forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        self.num_forwards += 1
        return self.linear(x)


class InC(nn.Module):
    forward = staticmethod(torch.tanh)


class PartialMethod(nn.Module):
    def scaled(self, factor: float, x: Tensor) -> Tensor:
        return factor * x

    forward = functools.partialmethod(scaled, 2.0)


class WithUnusedPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Module()

    def forward(self, x: Tensor) -> Tensor:
        return x


def with_partial_function() -> nn.Module:
    module = nn.Module()
    module.forward = functools.partial(F.leaky_relu, negative_slope=0.2)
    return module


PARTS = {
    "scripted": lambda: torch.jit.script(Counting()),
    "traced": lambda: torch.jit.trace(nn.Linear(WIDTH, WIDTH), torch.randn(2, WIDTH)),
    "in C": InC,
    "partial method": PartialMethod,
    "partial function": with_partial_function,
    "no forward": WithUnusedPart,
}


class Net(nn.Module):
    def __init__(self, part: nn.Module):
        super().__init__()
        self.embedding, self.attention, self.part = nn.Embedding(100, WIDTH), FusedAttention(), part
        self.head = nn.Linear(WIDTH, 100)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.part(self.attention(self.embedding(ids))))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_training_is_recorded_and_checked(part):
    model, ids = Net(part()), token_ids()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    checkup = TrainingCheckup(model, optimizers=optimizer)
    with AttentionRecorder(model, every_n_steps=1) as recorder, checkup:
        for step in range(STEPS):
            with recorder.step(step), checkup.step(step):
                logits = model(ids)
                F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        history = recorder.history()
    assert history.coverage == {"attention": "observed"}
    assert len(history) == STEPS
    assert not [reason for reason in checkup.skipped.values() if "failed" in reason]
    assert "future_leak" in checkup.answered
    for name in ("num_calls", "num_forwards"):
        assert getattr(model.part, name, STEPS) == STEPS
    assert model.part.training


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_part_itself_is_checked_or_has_a_reason(part):
    module, x = part(), torch.randn(4, WIDTH)
    with TrainingCheckup(module) as checkup, checkup.step(0):
        module(x.requires_grad_()).sum().backward()
    assert not [reason for reason in checkup.skipped.values() if "failed" in reason]


def test_names_of_a_forward_without_code_are_none():
    kind = type(torch.jit.script(Counting()))
    assert forward_function(kind) is None
    assert names_in_forward(kind) == locals_of_forward(kind) == set()
    assert forward_function(InC) is None


def test_function_under_wrappers_is_found():
    def function(x, factor=2):
        return x

    decorated = functools.wraps(function)(lambda *args: None)
    wrappers = [functools.partial(function, 1), functools.partialmethod(function, 1), staticmethod(decorated)]
    assert [function_of(each) for each in wrappers] == [function] * 3
    assert forward_function(PartialMethod) is PartialMethod.scaled
    assert list(parameters_of(function)) == ["x", "factor"]
    assert not parameters_of(torch.tanh)
