"""Snapshot of a model and its optimizers before a cut, for restoring them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.changes import apply_all, size_changes
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.surgery import replaced_parameter

Snapshot = dict[str, Any]
"""Snapshot of only tensors, numbers and strings, so that a checkpoint can contain it."""


@torch.no_grad()
def take_snapshot(model: nn.Module | HeadMap, optimizers: Sequence[Optimizer]) -> Snapshot:
    """Copy everything that training changes: model and optimizer state."""
    heads = HeadMap.of(model)
    return {
        "sites": {name: list(kept) for name, kept in heads.kept.items()},
        "parameters": {name: parameter.detach().clone() for name, parameter in heads.model.named_parameters()},
        "buffers": {name: buffer.clone() for name, buffer in heads.model.named_buffers()},
        "optimizers": [
            [_copied(optimizer.state.get(parameter, {})) for parameter in _parameters(optimizer)]
            for optimizer in optimizers
        ],
    }


def check_snapshot(model: nn.Module | HeadMap, optimizers: Sequence[Optimizer], snapshot: Snapshot) -> None:
    """Check that `restore_snapshot` can restore model and optimizers.

    Raises:
        ConfigurationError: something other than a cut has changed the model or an optimizer since the snapshot.
    """
    if len(optimizers) != len(snapshot["optimizers"]):
        raise ConfigurationError(
            f"there are {len(optimizers)} optimizers, but there were {len(snapshot['optimizers'])} before the cut."
        )
    for optimizer, states in zip(optimizers, snapshot["optimizers"], strict=True):
        if len(_parameters(optimizer)) < len(states):
            raise ConfigurationError(f"{type(optimizer).__name__} holds fewer parameters than it did before the cut.")
    heads = HeadMap.of(model)
    parameters = dict(heads.model.named_parameters())
    named: dict[str, Mapping[str, object]] = {"attention": heads.sites, "parameter": parameters}
    for what, before in (("attention", snapshot["sites"]), ("parameter", snapshot["parameters"])):
        gone = [name for name in before if name not in named[what]]
        if gone:
            raise ConfigurationError(f"the model no longer has the {what} {gone[0]!r} that it had before the cut.")
    cut = {id(part.parameter) for site in heads.sites.values() for part in site.cuts_of(site.kept)}
    for name, value in snapshot["parameters"].items():
        parameter = parameters[name]
        if parameter.shape != value.shape and id(parameter) not in cut:
            raise ConfigurationError(
                f"the parameter {name!r} was {list(value.shape)} before the cut and is now {list(parameter.shape)}, "
                "which is not the result of a cut."
            )


@torch.no_grad()
def restore_snapshot(model: nn.Module | HeadMap, optimizers: Sequence[Optimizer], snapshot: Snapshot) -> None:
    """Restore model and optimizers, including heads. The snapshot is consumed: its tensors become the model's.

    Parameters added to an optimizer since then keep their state.

    Raises:
        ConfigurationError: see `check_snapshot`; nothing was changed.
    """
    heads = HeadMap.of(model)
    check_snapshot(heads, optimizers, snapshot)
    model = heads.model
    parameters = dict(model.named_parameters())
    # All memory is allocated before anything is changed.
    new = {
        path: replaced_parameter(parameters[path], value)
        for path, value in snapshot["parameters"].items()
        if parameters[path].shape != value.shape
    }
    device = next(model.parameters()).device
    buffers = {path: value.to(device) for path, value in snapshot["buffers"].items()}
    replaced = {parameters[path]: parameter for path, parameter in new.items()}
    states = [
        _states_of(optimizer, states, replaced)
        for optimizer, states in zip(optimizers, snapshot["optimizers"], strict=True)
    ]
    for path, value in snapshot["parameters"].items():
        if path in new:
            module, name = _owner(model, path)
            module._parameters[name] = new[path]
        else:
            parameters[path].copy_(value)
    for path, value in buffers.items():
        module, name = _owner(model, path)
        old = module._buffers.get(name)
        if old is not None and old.shape == value.shape:
            old.copy_(value)
        else:
            module._buffers[name] = value
    for name, kept in snapshot["sites"].items():
        apply_all(size_changes(heads.sites[name], kept))
    for optimizer, its_states in zip(optimizers, states, strict=True):
        _restore_optimizer(optimizer, its_states, replaced)


def _states_of(
    optimizer: Optimizer, states: list[dict[str, Any]], replaced: dict[nn.Parameter, nn.Parameter]
) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    """Return the parameters after the restore, each with its state."""
    parameters = [replaced.get(parameter, parameter) for parameter in _parameters(optimizer)]
    return [
        (parameter, {name: _to(value, parameter) for name, value in state.items()})
        for parameter, state in zip(parameters, states, strict=False)
    ]


def _restore_optimizer(
    optimizer: Optimizer,
    states: list[tuple[nn.Parameter, dict[str, Any]]],
    replaced: dict[nn.Parameter, nn.Parameter],
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
    for old in replaced:
        optimizer.state.pop(old, None)
    for parameter, state in states:
        if state:
            optimizer.state[parameter] = state
        else:
            optimizer.state.pop(parameter, None)


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    module, _, name = path.rpartition(".")
    return model.get_submodule(module), name


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in state.items()}


def _to(value: Any, parameter: nn.Parameter) -> Any:
    return value.to(parameter.device) if isinstance(value, Tensor) and value.ndim else value
