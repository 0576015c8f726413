"""A model and its optimizers as they were before a cut, to put them back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.capture import KEPT_HEADS, UNPRUNED_HEADS, kept_heads
from attnwatch.errors import ConfigurationError
from attnwatch.pruning.heads import HeadSite, head_sites
from attnwatch.pruning.projections import features_of
from attnwatch.pruning.surgery import forward_swaps, replaced_parameter

Snapshot = dict[str, Any]
"""Tensors, numbers and strings only, so that it can lie in a checkpoint."""


@torch.no_grad()
def take_snapshot(model: nn.Module, optimizers: Sequence[Optimizer]) -> Snapshot:
    """Copies of everything that training changes: as large as the model with its optimizers' state."""
    return {
        "sites": {name: _numbers(site.module) for name, site in head_sites(model)[0].items()},
        "parameters": {name: parameter.detach().clone() for name, parameter in model.named_parameters()},
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "optimizers": [
            [_copied(optimizer.state.get(parameter, {})) for parameter in _parameters(optimizer)]
            for optimizer in optimizers
        ],
    }


@torch.no_grad()
def restore_snapshot(model: nn.Module, optimizers: Sequence[Optimizer], snapshot: Snapshot) -> None:
    """Put model and optimizers back, heads included. The snapshot is used up: its tensors become the model's.

    Parameters that an optimizer was given since then keep their state.

    Raises:
        ConfigurationError: an optimizer holds fewer parameters than before; nothing was changed.
    """
    for optimizer, states in zip(optimizers, snapshot["optimizers"], strict=True):
        if len(_parameters(optimizer)) < len(states):
            raise ConfigurationError(f"{type(optimizer).__name__} holds fewer parameters than it did before the cut.")
    sites, _ = head_sites(model)
    replaced = {}
    for path, value in snapshot["parameters"].items():
        module, name = _owner(model, path)
        old = module._parameters[name]
        if old.shape == value.shape:
            old.copy_(value)
            continue
        module._parameters[name] = replaced[old] = replaced_parameter(old, value)
        if name == "weight":
            vars(module).update(features_of(module))
    for site in sites.values():
        site.module._buffers.pop(KEPT_HEADS, None)
        for adapter in site.adapters:
            vars(adapter).update(features_of(adapter))
    for path, value in snapshot["buffers"].items():
        module, name = _owner(model, path)
        old = module._buffers.get(name)
        if old is not None and old.shape == value.shape:
            old.copy_(value)
        else:
            module._buffers[name] = value.to(next(model.parameters()).device)
    for name, site in sites.items():
        _restore_site(site, snapshot["sites"][name])
    for optimizer, states in zip(optimizers, snapshot["optimizers"], strict=True):
        _restore_optimizer(optimizer, states, replaced)


def _restore_site(site: HeadSite, numbers: dict[str, int]) -> None:
    values = vars(site.module)
    values.update(numbers)
    kept = kept_heads(site.module)
    if kept is None:
        values.pop(UNPRUNED_HEADS, None)
    for swap in forward_swaps(site, range(site.num_unpruned_heads) if kept is None else kept.tolist()):
        swap.apply()


def _numbers(module: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if isinstance(value, int) and name != "training"}


def _restore_optimizer(optimizer: Optimizer, states: list[dict], replaced: dict[nn.Parameter, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
    for old in replaced:
        optimizer.state.pop(old, None)
    for parameter, state in zip(_parameters(optimizer), states, strict=False):
        if state:
            optimizer.state[parameter] = {name: _to(value, parameter) for name, value in state.items()}
        else:
            optimizer.state.pop(parameter, None)


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    module, _, name = path.rpartition(".")
    return model.get_submodule(module), name


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def _to(value: Any, parameter: nn.Parameter) -> Any:
    return value.to(parameter.device) if isinstance(value, Tensor) and value.ndim else value
