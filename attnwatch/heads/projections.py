"""Projections of an attention module: torch's Linear, transformers' Conv1D, and PEFT's LoRA around either."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from attnwatch.models import Refused


@dataclass(frozen=True)
class ParameterCut:
    """One dimension of a parameter, and its entries to keep.

    Attributes:
        module: module that holds the parameter.
        name: name of the parameter in the module.
        dim: dimension to cut.
        kept: int64 indices of the entries to keep, ascending.
        scale: function that returns factors for these entries, or None.
    """

    module: nn.Module
    name: str
    dim: int
    kept: Tensor
    scale: Callable[[], Tensor] | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """Current parameter of the module."""
        return getattr(self.module, self.name)

    @property
    def key(self) -> tuple[int, str]:
        """Identity of the parameter's place, which stays the same when the parameter is replaced."""
        return id(self.module), self.name


_LORA = ("base_layer.", "lora_A.", "lora_B.", "lora_magnitude_vector.")


def base_of(module: nn.Module) -> nn.Module | None:
    """Return the module that an adapter wraps; None if `module` is not an adapter."""
    return getattr(module, "base_layer", None)


def base_layer(projection: nn.Module) -> nn.Module:
    """Return a projection without its adapter.

    Raises:
        Refused: the adapter is not a LoRA adapter that can be cut.
    """
    base = base_of(projection)
    if base is None:
        return projection
    for name, _ in projection.named_parameters():
        if not name.startswith(_LORA):
            raise Refused(f"its adapter {type(projection).__name__} has a parameter {name}, which LoRA does not have")
    if getattr(projection, "merged", False) and adapters(projection, "lora_magnitude_vector"):
        raise Refused("its DoRA adapter is merged, and can't be unmerged after a cut; unmerge it first")
    for lora in (*adapters(projection, "lora_A").values(), *adapters(projection, "lora_B").values()):
        if not isinstance(lora, nn.Linear):
            raise Refused(f"its adapter {type(projection).__name__} has a {type(lora).__name__} in place of a Linear")
    return base


def is_conv1d(projection: nn.Module) -> bool:
    """Return whether a projection is transformers' Conv1D, whose weight is [inputs, outputs]."""
    return type(projection).__name__ == "Conv1D"


def features_of(projection: nn.Module) -> dict[str, int]:
    """Return the attributes of a projection, or of an adapter around it, that store the sizes of its weight."""
    base = base_of(projection)
    if base is not None:
        outputs, inputs = by_output(base).shape
        return {"out_features": outputs, "in_features": inputs}
    if isinstance(projection, nn.Linear):
        return dict(zip(("out_features", "in_features"), projection.weight.shape, strict=True))
    if is_conv1d(projection):
        return dict(zip(("nx", "nf"), projection.get_parameter("weight").shape, strict=True))
    return {}


def num_outputs(projection: nn.Module) -> int:
    """Return the number of output features; raise `Refused` if the projection can't be cut."""
    _refuse_unusual(projection)
    return by_output(projection).shape[0]


def num_inputs(projection: nn.Module) -> int:
    """Return the number of input features; raise `Refused` if the projection can't be cut."""
    _refuse_unusual(projection)
    return by_output(projection).shape[1]


def by_output(projection: nn.Module) -> Tensor:
    """Return a view of the weight of a projection as [outputs, inputs]."""
    weight = projection.get_parameter("weight")
    return weight.t() if is_conv1d(projection) else weight


def _refuse_unusual(projection: nn.Module) -> None:
    kind = type(projection)
    if not (isinstance(projection, nn.Linear) or is_conv1d(projection)):
        raise Refused(f"its projection is a {kind.__name__}, neither a Linear nor a Conv1D")
    if isinstance(projection, nn.Linear) and kind.forward is not nn.Linear.forward:
        raise Refused(f"its projection is a {kind.__name__}, a Linear with its own forward")
    weight = projection._parameters.get("weight")
    is_plain = weight is not None and weight.ndim == 2 and weight.is_floating_point()
    if not is_plain or is_parametrized(projection) or not all(map(_is_plain, projection.parameters())):
        raise Refused(f"the weight of its projection {kind.__name__} is parametrized, quantized or sharded")
    unknown = {*projection._parameters, *projection._buffers, *projection._modules} - {"weight", "bias"}
    if unknown:
        raise Refused(f"its projection {kind.__name__} has an unknown attribute {sorted(unknown)[0]!r}")


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and type(parameter.data) is Tensor


def refuse_hooks(name: str, parameter: nn.Parameter) -> None:
    """Raise `Refused` if a parameter has hooks, which the parameter that replaces it would lack."""
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        raise Refused(
            f"its parameter {name} has hooks, which a cut would lose; remove them, cut, and register them again"
        )


def cut_outputs(projection: nn.Module, kept: Tensor) -> Iterable[ParameterCut]:
    """Cut all output features except these from a projection and the adapters around it."""
    base = base_layer(projection)
    yield ParameterCut(base, "weight", 1 if is_conv1d(base) else 0, kept)
    if base.bias is not None:
        yield ParameterCut(base, "bias", 0, kept)
    for parts in ("lora_B", "lora_magnitude_vector"):
        for lora in adapters(projection, parts).values():
            yield from (ParameterCut(lora, name, 0, kept) for name, _ in lora.named_parameters())


def cut_inputs(projection: nn.Module, kept: Tensor) -> Iterable[ParameterCut]:
    """Cut all input features except these from a projection and the adapters around it."""
    base = base_layer(projection)
    yield ParameterCut(base, "weight", 0 if is_conv1d(base) else 1, kept)
    for lora in adapters(projection, "lora_A").values():
        yield ParameterCut(lora, "weight", 1, kept)
    for adapter, magnitude in adapters(projection, "lora_magnitude_vector").items():
        every = torch.arange(len(magnitude.get_parameter("weight")))
        yield ParameterCut(magnitude, "weight", 0, every, partial(_dora_scale, projection, adapter, kept))


@torch.no_grad()
def _dora_scale(projection: Any, adapter: str, kept: Tensor) -> Tensor:
    """Return factors for DoRA's magnitudes, since DoRA divides rows by their norms, which a cut reduces."""
    delta = projection.lora_B[adapter].weight @ projection.lora_A[adapter].weight
    weight = by_output(base_layer(projection)) + projection.scaling[adapter] * delta
    return weight[:, kept.to(weight.device)].norm(dim=1) / weight.norm(dim=1)


def adapters(projection: nn.Module, name: str) -> Mapping[str, nn.Module]:
    """Return the parts with this name of the adapters around a projection, by adapter; empty if there are none."""
    return getattr(projection, name, {})
