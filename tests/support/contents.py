"""Tensors and attributes of a model, compared by identity and value."""

import torch
from torch import nn


def attributes(model: nn.Module) -> dict[str, object]:
    """Numbers and more that its modules have, and whether their forward was replaced."""
    return {
        f"{path}.{name}": str(value) if name == "forward" else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | tuple) or name in ("config", "forward")
    }


def contents(model: nn.Module) -> dict[str, object]:
    """All that a model is: tensors by identity and value, and the attributes of its modules."""
    state = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    return state | attributes(model)


def assert_unchanged(model: nn.Module, before: dict[str, object]) -> None:
    after = contents(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.Tensor):
            assert after[name][0] == value[0], name
            assert torch.equal(after[name][1], value[1]), name
        else:
            assert after[name] == value, name
