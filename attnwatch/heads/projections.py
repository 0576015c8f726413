"""The projections of an attention module: torch's Linear, transformers' Conv1D, and PEFT's LoRA around one of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


class Refused(Exception):
    """The heads of a module can't be removed; says why."""


@dataclass(frozen=True)
class ParameterCut:
    """One dimension of a parameter, and the entries of it that stay: int64 indices, ascending.

    These are multiplied with what `scale` returns, where there is one.
    """

    module: nn.Module
    name: str
    dim: int
    kept: Tensor
    scale: Callable[[], Tensor] | None = None

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.name)


_LORA = ("base_layer.", "lora_A.", "lora_B.", "lora_magnitude_vector.")


def base_of(module: nn.Module) -> nn.Module | None:
    """What the module, if it is an adapter, lies around."""
    return getattr(module, "base_layer", None)


def base_layer(projection: nn.Module) -> nn.Module:
    """The projection without an adapter around it."""
    base = base_of(projection)
    if base is None:
        return projection
    for name, _ in projection.named_parameters():
        if not name.startswith(_LORA):
            raise Refused(f"its adapter {type(projection).__name__} has a parameter {name}, which is none of LoRA's")
    if getattr(projection, "merged", False) and adapters(projection, "lora_magnitude_vector"):
        raise Refused("its adapter DoRA is merged, and can't be taken out again after a cut; unmerge it first")
    for lora in (*adapters(projection, "lora_A").values(), *adapters(projection, "lora_B").values()):
        if not isinstance(lora, nn.Linear):
            raise Refused(f"its adapter {type(projection).__name__} has a {type(lora).__name__} in place of a Linear")
    return base


def is_conv1d(projection: nn.Module) -> bool:
    return type(projection).__name__ == "Conv1D"


def features_of(projection: nn.Module) -> dict[str, int]:
    """What a projection, or an adapter around it, says about the size of its weight, by attribute."""
    if base_of(projection) is not None:
        outputs, inputs = by_output(projection.base_layer).shape
        return {"out_features": outputs, "in_features": inputs}
    if isinstance(projection, nn.Linear):
        return dict(zip(("out_features", "in_features"), projection.weight.shape, strict=True))
    if is_conv1d(projection):
        return dict(zip(("nx", "nf"), projection.weight.shape, strict=True))
    return {}


def num_outputs(projection: nn.Module) -> int:
    _refuse_unusual(projection)
    return by_output(projection).shape[0]


def num_inputs(projection: nn.Module) -> int:
    _refuse_unusual(projection)
    return by_output(projection).shape[1]


def by_output(projection: nn.Module) -> Tensor:
    """Its weight [outputs, inputs]."""
    return projection.weight.t() if is_conv1d(projection) else projection.weight


def _refuse_unusual(projection: nn.Module) -> None:
    kind = type(projection)
    if not (isinstance(projection, nn.Linear) or is_conv1d(projection)):
        raise Refused(f"its projection is a {kind.__name__}, neither a Linear nor a Conv1D")
    if isinstance(projection, nn.Linear) and kind.forward is not nn.Linear.forward:
        raise Refused(f"its projection is a {kind.__name__}, a Linear with a forward of its own")
    weight = projection._parameters.get("weight")
    is_plain = weight is not None and weight.ndim == 2 and weight.is_floating_point()
    if not is_plain or is_parametrized(projection) or not all(map(_is_plain, projection.parameters())):
        raise Refused(f"the weight of its projection {kind.__name__} is parametrized, quantized or sharded")
    unknown = {*projection._parameters, *projection._buffers, *projection._modules} - {"weight", "bias"}
    if unknown:
        raise Refused(f"its projection {kind.__name__} has {sorted(unknown)[0]!r}, whose meaning is not known")


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and type(parameter.data) is Tensor


def refuse_hooks(name: str, parameter: nn.Parameter) -> None:
    """The parameter is replaced by a new one, and nobody knows what a hook on it would do there."""
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        raise Refused(
            f"its parameter {name} has hooks, which a cut would lose; remove them, cut, and put them on the new one"
        )


def cut_outputs(projection: nn.Module, kept: Tensor) -> Iterable[ParameterCut]:
    base = base_layer(projection)
    yield ParameterCut(base, "weight", 1 if is_conv1d(base) else 0, kept)
    if base.bias is not None:
        yield ParameterCut(base, "bias", 0, kept)
    for parts in ("lora_B", "lora_magnitude_vector"):
        for lora in adapters(projection, parts).values():
            yield from (ParameterCut(lora, name, 0, kept) for name, _ in lora.named_parameters())


def cut_inputs(projection: nn.Module, kept: Tensor) -> Iterable[ParameterCut]:
    base = base_layer(projection)
    yield ParameterCut(base, "weight", 0 if is_conv1d(base) else 1, kept)
    for lora in adapters(projection, "lora_A").values():
        yield ParameterCut(lora, "weight", 1, kept)
    for adapter, magnitude in adapters(projection, "lora_magnitude_vector").items():
        every = torch.arange(len(magnitude.weight))
        yield ParameterCut(magnitude, "weight", 0, every, partial(_dora_scale, projection, adapter, kept))


@torch.no_grad()
def _dora_scale(projection: nn.Module, adapter: str, kept: Tensor) -> Tensor:
    """DoRA divides each row of the weight by its norm. What is left of a row has a smaller one."""
    delta = projection.lora_B[adapter].weight @ projection.lora_A[adapter].weight
    weight = by_output(base_layer(projection)) + projection.scaling[adapter] * delta
    return weight[:, kept.to(weight.device)].norm(dim=1) / weight.norm(dim=1)


def adapters(projection: nn.Module, name: str) -> Mapping[str, nn.Module]:
    return getattr(projection, name, {})
