"""Trainings of a pruned and of a masked model with the same optimizer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.support.head_models import FAMILIES, Family, output

LLAMA, GPT2 = FAMILIES["qwen2, sdpa"], FAMILIES["gpt2, sdpa"]


def step(model: nn.Module, optimizer: Optimizer, family: Family = LLAMA) -> None:
    optimizer.zero_grad()
    backward(model, family)
    optimizer.step()


def backward(model: nn.Module, family: Family = LLAMA) -> None:
    """Gradients that are 0 but for rounding (of key biases) are 0: some optimizers go by their sign."""
    output(model, family.batch()).square().mean().backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad[parameter.grad.abs() < 1e-13] = 0


def trained(make: Callable, family: Family = LLAMA, steps: int = 3) -> tuple[nn.Module, Optimizer]:
    model = family.model()
    optimizer = make(model.parameters())
    for _ in range(steps):
        step(model, optimizer, family)
    return model, optimizer


def assert_equal_training(got: tuple, expected: tuple, entries: dict[str, Tensor]):
    """Parameters and their state are those entries of the other's."""
    states = [optimizer.state for _, optimizer in (got, expected)]
    others = dict(expected[0].named_parameters())
    for name, parameter in got[0].named_parameters():
        torch.testing.assert_close(parameter, others[name].take(entries[name]), rtol=1e-9, atol=1e-12)
        state, other = (of[p] for of, p in zip(states, (parameter, others[name]), strict=True))
        assert state.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, Tensor) and value.ndim:
                torch.testing.assert_close(state[key], value.take(entries[name]), rtol=1e-9, atol=1e-12)
            else:
                assert state[key] == value, (name, key)
