"""Whether anything of a model and its optimizers has changed."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def snapshot(model: nn.Module, *optimizers: Optimizer) -> dict[str, Any]:
    """All that a cut could change: identities, numbers, and the bits of all tensors.

    What it holds stays alive, so that nothing new can have an old identity.
    """
    holds, values = [], {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            holds.append(value)
            of_attribute = value.items() if isinstance(value, dict) else [("", value)]
            values |= {f"{name}.{attribute}.{key}": (id(v), _content(v)) for key, v in of_attribute}
            holds += [v for _, v in of_attribute]
    for index, optimizer in enumerate(optimizers):
        values[f"{index} state"] = {id(parameter): id(state) for parameter, state in optimizer.state.items()}
        for group in optimizer.param_groups:
            values[f"{index} group {id(group)}"] = [(key, id(v), _content(v)) for key, v in group.items()]
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                values[f"{index} state of {id(parameter)}"] = [(key, id(v), _content(v)) for key, v in state.items()]
                holds += [parameter, state, *state.values()]
    return {"values": values, "holds": holds}


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        grad = None if value.grad is None else (id(value.grad), value.grad.tolist())
        return value.dtype, value.requires_grad, value.tolist(), grad
    if isinstance(value, list):
        return [id(entry) for entry in value]
    return value if isinstance(value, int | float | str | tuple) else None


def assert_unchanged(before: dict[str, Any], model: nn.Module, *optimizers: Optimizer):
    after = snapshot(model, *optimizers)["values"]
    assert after.keys() == before["values"].keys()
    changed = [name for name, value in after.items() if value != before["values"][name]]
    assert not changed
