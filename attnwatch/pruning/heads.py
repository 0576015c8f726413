"""The heads that a model has, and what a cut of them means for each of its parameters."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from attnwatch.capture import KEPT_HEADS, UNPRUNED_HEADS, find_sites, site_name
from attnwatch.errors import ConfigurationError
from attnwatch.pruning.layouts import HeadLayout, layout_of


@dataclass(frozen=True)
class ParameterCut:
    """One dimension of a parameter, and the entries of it that stay: int64 indices, ascending.

    These are multiplied with `scale`, where there is one.
    """

    module: nn.Module
    name: str
    dim: int
    kept: Tensor
    scale: Tensor | None = None

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.name)


@dataclass(frozen=True, eq=False)
class HeadSite:
    """One attention module whose heads can be removed.

    Attributes:
        name: as in a recorder's coverage.
        module, layout: what it is, and where its heads lie.
        parent: the module that holds it.
        head_dim: features per head.
        kept: numbers of the heads that it has, as in the unpruned model; ascending.
        num_unpruned_heads, num_unpruned_key_value_heads: of the unpruned model.
        num_key_value_heads: that it has.
    """

    name: str
    module: nn.Module
    layout: HeadLayout
    parent: nn.Module
    head_dim: int
    kept: tuple[int, ...]
    num_unpruned_heads: int
    num_unpruned_key_value_heads: int
    num_key_value_heads: int

    @property
    def num_heads(self) -> int:
        return len(self.kept)

    @cached_property
    def projection(self) -> nn.Module:
        """The output projection, with an adapter around it where there is one."""
        return _submodule(self.module, self.parent, self.layout.output)

    @cached_property
    def output(self) -> nn.Module:
        """The output projection, without an adapter."""
        return base_layer(self.projection)

    @property
    def output_weight(self) -> Tensor:
        """Its weight, [features, heads · head_dim] (a view of it, for a Conv1D)."""
        return _by_output(self.output)

    @property
    def is_output_outside(self) -> bool:
        return self.layout.output.startswith("../")

    @property
    def _has_adapted_conv1d(self) -> bool:
        return self.output is not self.projection and _is_conv1d(self.output)

    def groups(self) -> list[list[int]]:
        """Its heads (numbers in the unpruned model) by the key-value head that they read."""
        if not self.num_key_value_heads:
            return []
        size = self.num_heads // self.num_key_value_heads
        return [list(self.kept[start : start + size]) for start in range(0, self.num_heads, size)]

    def keep(self, heads: Sequence[int]) -> tuple[list[ParameterCut], int]:
        """What stays of each parameter if only `heads` stay, and how many key-value heads.

        Raises:
            ConfigurationError: grouped-query attention would have groups of different sizes, or an adapter no head.
        """
        if not heads and (_adapters(self.projection, "lora_magnitude_vector") or self._has_adapted_conv1d):
            raise ConfigurationError(
                f"`heads` are all heads of {self.name!r}: at least one must stay, as the adapter of its output "
                "projection does not work without."
            )
        positions = [self.kept.index(head) for head in heads]
        size = self.num_heads // max(self.num_key_value_heads, 1)
        in_group = [
            sum(position // size == group for position in positions) for group in range(self.num_key_value_heads)
        ]
        sizes = {number for number in in_group if number}
        if len(sizes) > 1:
            raise ConfigurationError(
                f"`heads` at {self.name!r}: the key-value heads would be read by {in_group} query heads; grouped-query "
                "attention needs equally many for each that stays. Remove whole groups, or as many from every group: "
                f"{self.groups()}."
            )
        key_values = [group for group, number in enumerate(in_group) if number]
        return list(self._cuts(positions, key_values)), len(key_values)

    def _cuts(self, queries: list[int], key_values: list[int]) -> Iterable[ParameterCut]:
        for path, segments in self.layout.inputs.items():
            kept = self._features(segments, queries, key_values)
            if path in self.module._parameters:
                if self.module._parameters[path] is not None:
                    yield ParameterCut(self.module, path, 0, kept)
                continue
            yield from _cut_outputs(self.module.get_submodule(path), kept)
        yield from _cut_inputs(self.projection, self._features("q", queries, key_values))
        for name, dim in self.layout.per_head.items():
            yield ParameterCut(self.module, name, dim, torch.tensor(queries, dtype=torch.long))

    def _features(self, segments: str, queries: list[int], key_values: list[int]) -> Tensor:
        kept, start = [], 0
        for segment in segments.split("|"):
            has_queries = "q" in segment
            size = self.head_dim * len(segment)
            heads = torch.tensor(queries if has_queries else key_values, dtype=torch.long)
            kept.append(start + (heads[:, None] * size + torch.arange(size)).flatten())
            start += size * (self.num_heads if has_queries else self.num_key_value_heads)
        return torch.cat(kept)


def head_sites(model: nn.Module) -> tuple[dict[str, HeadSite], dict[str, str]]:
    """Attention modules whose heads can be removed, in module order; and why the others' can't, by their names."""
    sites, refused = {}, {}
    paths = dict(model.named_modules())
    uses = Counter(id(parameter) for module in paths.values() for parameter in module._parameters.values())
    for path, module in paths.items():
        layout = layout_of(module)
        if layout is None:
            continue
        name = site_name(path, module)
        try:
            site = _resolve(name, module, layout, paths[path.rpartition(".")[0]] if path else module)
            _refuse_tied(site, uses)
            sites[name] = site
        except _Refused as reason:
            refused[name] = str(reason)
    for site in find_sites(model):
        if site.name not in sites and site.name not in refused:
            refused[site.name] = (
                f"the layout of {type(site.module).__name__} is not known; describe it with attnwatch.register_layout"
            )
    return sites, refused


class _Refused(Exception):
    """The heads of a module can't be removed; says why."""


def _resolve(name: str, module: nn.Module, layout: HeadLayout, parent: nn.Module) -> HeadSite:
    if is_parametrized(module):
        raise _Refused("its parameters are parametrized")
    if getattr(parent, "base_layer", None) is module:
        raise _Refused(f"it lies in an adapter {type(parent).__name__}, whose forward needs all of its heads")
    head_dim = _head_dim(module, layout)
    output = base_layer(_submodule(module, parent, layout.output))
    num_heads, rest = divmod(_num_inputs(output), head_dim)
    num_key_value_heads = _num_key_value_heads(module, layout, num_heads, head_dim)
    if (
        rest
        or num_key_value_heads is None
        or (num_heads and (not num_key_value_heads or num_heads % num_key_value_heads))
    ):
        raise _Refused("its projections do not have the features of whole heads")
    kept = getattr(module, KEPT_HEADS, None)
    kept = tuple(range(num_heads)) if kept is None else tuple(kept.tolist())
    unpruned = getattr(module, UNPRUNED_HEADS, (num_heads, num_key_value_heads))
    site = HeadSite(name, module, layout, parent, head_dim, kept, *unpruned, num_key_value_heads)
    _refuse_unclaimed(site)
    return site


def _head_dim(module: nn.Module, layout: HeadLayout) -> int:
    if callable(layout.head_dim):
        return layout.head_dim(module)
    if isinstance(layout.head_dim, int):
        return layout.head_dim
    if not hasattr(module, layout.head_dim):
        raise _Refused(f"it has no attribute {layout.head_dim!r}")
    return getattr(module, layout.head_dim)


def _num_key_value_heads(module: nn.Module, layout: HeadLayout, num_heads: int, head_dim: int) -> int | None:
    """From the features that are not the queries'; None where these do not fit."""
    numbers = set()
    for path, segments in layout.inputs.items():
        if path in module._parameters:
            if module._parameters[path] is None:
                continue
            features = module._parameters[path].shape[0]
        else:
            features = _num_outputs(base_layer(_submodule(module, module, path)))
        parts = segments.split("|")
        of_queries = sum(len(part) for part in parts if "q" in part) * num_heads * head_dim
        of_key_values = sum(len(part) for part in parts if "q" not in part) * head_dim
        if of_key_values:
            numbers.add(divmod(features - of_queries, of_key_values))
        elif features != of_queries:
            return None
    if not numbers:  # query, key and value of each head lie together
        return num_heads
    (number, rest), *others = numbers
    return None if others or rest or number < 0 else number


def _refuse_unclaimed(site: HeadSite) -> None:
    """A parameter that nobody has told where its heads are may depend on them."""
    layout = site.layout
    output = () if site.is_output_outside else (layout.output,)
    claimed = (*layout.inputs, *output, *layout.per_head, *layout.whole)
    for name, parameter in site.module.named_parameters():
        if not any(name == known or name.startswith(f"{known}.") for known in claimed):
            raise _Refused(f"its parameter {name} {list(parameter.shape)} is not in the layout")
        norm = next((known for known in layout.whole if name.startswith(f"{known}.")), None)
        if norm and "norm" in norm and (name.count(".") > 1 or parameter.shape != (site.head_dim,)):
            raise _Refused(f"its {norm} normalizes all heads together, or each head with weights of its own")


def _refuse_tied(site: HeadSite, uses: Mapping[int, int]) -> None:
    for name, parameter in (*site.module.named_parameters(), *site.projection.named_parameters()):
        if uses[id(parameter)] > 1:
            raise _Refused(f"its parameter {name} {list(parameter.shape)} is used in another place too (tied weights)")


# Projections: torch's Linear, transformers' Conv1D, and PEFT's LoRA around one of them.


_LORA = ("base_layer.", "lora_A.", "lora_B.", "lora_magnitude_vector.")


def base_layer(projection: nn.Module) -> nn.Module:
    """The projection without an adapter around it."""
    base = getattr(projection, "base_layer", None)
    if base is None:
        return projection
    for name, _ in projection.named_parameters():
        if not name.startswith(_LORA):
            raise _Refused(f"its adapter {type(projection).__name__} has a parameter {name}, which is none of LoRA's")
    for lora in (*_adapters(projection, "lora_A").values(), *_adapters(projection, "lora_B").values()):
        if not isinstance(lora, nn.Linear):
            raise _Refused(f"its adapter {type(projection).__name__} has a {type(lora).__name__} in place of a Linear")
    return base


def _is_conv1d(projection: nn.Module) -> bool:
    return type(projection).__name__ == "Conv1D"


def _num_outputs(projection: nn.Module) -> int:
    _refuse_unusual(projection)
    return _by_output(projection).shape[0]


def _num_inputs(projection: nn.Module) -> int:
    _refuse_unusual(projection)
    return _by_output(projection).shape[1]


def _by_output(projection: nn.Module) -> Tensor:
    """Its weight [outputs, inputs]."""
    return projection.weight.t() if _is_conv1d(projection) else projection.weight


def _refuse_unusual(projection: nn.Module) -> None:
    if not (isinstance(projection, nn.Linear) or _is_conv1d(projection)):
        raise _Refused(f"its projection is a {type(projection).__name__}, neither a Linear nor a Conv1D")
    weight = projection._parameters.get("weight")
    is_plain = weight is not None and weight.ndim == 2 and weight.is_floating_point()
    if not is_plain or is_parametrized(projection):
        raise _Refused(f"the weight of its projection {type(projection).__name__} is parametrized or quantized")


def _cut_outputs(projection: nn.Module, kept: Tensor) -> Iterable[ParameterCut]:
    base = base_layer(projection)
    yield ParameterCut(base, "weight", 1 if _is_conv1d(base) else 0, kept)
    if base.bias is not None:
        yield ParameterCut(base, "bias", 0, kept)
    for parts in ("lora_B", "lora_magnitude_vector"):
        for lora in _adapters(projection, parts).values():
            yield from (ParameterCut(lora, name, 0, kept) for name, _ in lora.named_parameters())


def _cut_inputs(projection: nn.Module, kept: Tensor) -> Iterable[ParameterCut]:
    base = base_layer(projection)
    yield ParameterCut(base, "weight", 0 if _is_conv1d(base) else 1, kept)
    for lora in _adapters(projection, "lora_A").values():
        yield ParameterCut(lora, "weight", 1, kept)
    for adapter, magnitude in _adapters(projection, "lora_magnitude_vector").items():
        every = torch.arange(len(magnitude.weight))
        yield ParameterCut(magnitude, "weight", 0, every, _dora_scale(projection, adapter, kept))


@torch.no_grad()
def _dora_scale(projection: nn.Module, adapter: str, kept: Tensor) -> Tensor:
    """DoRA divides each row of the weight by its norm. What is left of a row has a smaller one."""
    delta = projection.lora_B[adapter].weight @ projection.lora_A[adapter].weight
    weight = _by_output(base_layer(projection)) + projection.scaling[adapter] * delta
    return weight[:, kept.to(weight.device)].norm(dim=1) / weight.norm(dim=1)


def _adapters(projection: nn.Module, name: str) -> Mapping[str, nn.Module]:
    return getattr(projection, name, {})


def _submodule(module: nn.Module, parent: nn.Module, path: str) -> nn.Module:
    try:
        return parent.get_submodule(path[3:]) if path.startswith("../") else module.get_submodule(path)
    except AttributeError:
        raise _Refused(f"it has no projection {path!r}") from None
