"""Attention weights that a model's own eager code returns, by module."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.batches import Batch
from benchmarks.coverage.reference import Weights

_STATES_OF_OTHERS = ("key_value_states", "encoder_hidden_states", "cross_attention_states")


def eager_copy(architecture: Architecture, model: nn.Module) -> nn.Module:
    """Return a copy of the model that uses eager attention."""
    eager = architecture.build("eager")
    eager.load_state_dict(model.state_dict())
    return eager


@torch.no_grad()
def weights_of(eager: nn.Module, batch: Batch) -> dict[str, list[Weights]]:
    """Return the attention weights of all calls in one forward, by the path of the module that returns them."""
    found: dict[str, list[Weights]] = {}
    with _watched(eager, batch, found):
        eager(**batch.inputs, **_asking_for_weights(eager))
    return found


@contextlib.contextmanager
def _watched(model: nn.Module, batch: Batch, found: dict[str, list[Weights]]) -> Iterator[None]:
    """Put the weights that modules return into `found` while the context is open. Inner modules return first."""
    seen: list[Tensor] = []

    def put(path: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        has_sink = getattr(module, "sinks", None) is not None
        for values in output if isinstance(output, tuple | list) else ():
            if not _are_weights(values, has_sink):
                continue
            if any(values is other for other in seen):  # a module around that hands them on
                continue
            seen.append(values)
            is_cross = _is_cross(module, args, kwargs)
            real = None if is_cross else batch.real_of(path, values.shape[2])
            found.setdefault(path, []).append(Weights(values, is_cross, real, has_sink))

    with contextlib.ExitStack() as hooks:
        for path, module in model.named_modules():
            handle = module.register_forward_hook(lambda *call, at=path: put(at, *call), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _asking_for_weights(model: nn.Module) -> dict[str, bool]:
    parameters = inspect.signature(model.forward).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {"output_attentions": True} if takes_more or "output_attentions" in parameters else {}


def _are_weights(value: Any, has_sink: bool) -> bool:
    """Return True for a tensor [batch, heads, queries, keys] whose rows sum to one, with a learned sink to less.

    Rows that see no key may be nan or zero.
    """
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        return False
    sums = value.double().sum(-1)
    if has_sink:
        return bool((sums.isnan() | (sums < 1 + 1e-3)).all() and not (value < 0).any())
    ones = (sums - 1).abs() < 1e-3
    return bool(ones.any() and (ones | sums.isnan() | (sums == 0)).all() and not (value < 0).any())


def _is_cross(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | dict(kwargs)
    return any(given.get(name) is not None for name in _STATES_OF_OTHERS)
