"""The heads that a model has, and what a cut of them means for each of its parameters."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from attnwatch.capture import UNPRUNED_HEADS, find_sites, is_split, kept_heads, site_name
from attnwatch.errors import ConfigurationError
from attnwatch.heads.layouts import HeadLayout, is_registered, layout_of
from attnwatch.heads.projections import (
    ParameterCut,
    Refused,
    adapters,
    base_layer,
    base_of,
    by_output,
    cut_inputs,
    cut_outputs,
    is_conv1d,
    num_inputs,
    num_outputs,
    refuse_hooks,
)
from attnwatch.heads.refusals import (
    refuse_other_forward,
    refuse_unclaimed,
    refuse_unknown_sizes,
    why_no_heads,
)


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
    def paths(self) -> list[str]:
        """Of its input projections that are modules."""
        return [path for path in self.layout.inputs if path not in self.module._parameters]

    @property
    def adapters(self) -> list[nn.Module]:
        """Those around its projections."""
        return [part for part in (*self.module.modules(), self.projection) if base_of(part) is not None]

    @property
    def output_weight(self) -> Tensor:
        """Its weight, [features, heads · head_dim] (a view of it, for a Conv1D)."""
        return by_output(self.output)

    @property
    def is_output_outside(self) -> bool:
        return self.layout.output.startswith("../")

    @property
    def _has_adapted_conv1d(self) -> bool:
        return self.output is not self.projection and is_conv1d(self.output)

    def count_key_value_heads(self, num_heads: int) -> int | None:
        """As its weights have them, if these have so many query heads; None where they have no whole number."""
        return _num_key_value_heads(self.module, self.layout, num_heads, self.head_dim)

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
        if not heads and (adapters(self.projection, "lora_magnitude_vector") or self._has_adapted_conv1d):
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
            yield from cut_outputs(self.module.get_submodule(path), kept)
        yield from cut_inputs(self.projection, self._features("q", queries, key_values))
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
    modules = paths.values()
    uses = Counter(id(part) for module in modules for part in (*module._parameters.values(), *module._modules.values()))
    unusable = why_no_heads(modules)
    for path, module in paths.items():
        name = site_name(path, module)
        try:
            layout = layout_of(module)
            if layout is None:
                continue
            if unusable:
                raise Refused(unusable)
            site = _resolve(name, module, layout, paths[path.rpartition(".")[0]] if path else module)
            _refuse_shared(site, uses)
            sites[name] = site
        except Refused as reason:
            refused[name] = str(reason)
    for site in find_sites(model):
        if site.name not in sites and site.name not in refused:
            refused[site.name] = (
                f"the layout of {type(site.module).__name__} is not known; describe it with attnwatch.register_layout "
                f"(its modules and parameters are {_named_parts(site.module)})"
            )
    return sites, refused


def _resolve(name: str, module: nn.Module, layout: HeadLayout, parent: nn.Module) -> HeadSite:
    if is_parametrized(module):
        raise Refused(
            "its parameters are parametrized; remove that first (torch.nn.utils.parametrize.remove_parametrizations) "
            "and put it on again after the cut"
        )
    if is_split(module):
        raise Refused(
            "its parameters are sharded (DTensor); remove heads before fully_shard or parallelize_module, or from a "
            "checkpoint of the whole model"
        )
    if getattr(parent, "base_layer", None) is module:
        raise Refused(
            f"it lies in an adapter {type(parent).__name__}, whose forward needs all of its heads; merge the adapter "
            "first (merge_and_unload), or adapt its projections in place of the whole module"
        )
    head_dim = _head_dim(module, layout)
    output = base_layer(_submodule(module, parent, layout.output))
    num_heads, rest = divmod(num_inputs(output), head_dim)
    num_key_value_heads = _num_key_value_heads(module, layout, num_heads, head_dim)
    if (
        rest
        or num_key_value_heads is None
        or (num_heads and (not num_key_value_heads or num_heads % num_key_value_heads))
    ):
        raise Refused(
            f"its projections do not have the features of whole heads: {num_inputs(output)} features enter "
            f"{layout.output!r}, and a head has {head_dim}; correct `head_dim`, or the segments of `inputs`"
        )
    kept = kept_heads(module)
    numbers = tuple(range(num_heads)) if kept is None else tuple(kept.tolist())
    unpruned = getattr(module, UNPRUNED_HEADS, (num_heads, num_key_value_heads))
    site = HeadSite(name, module, layout, parent, head_dim, numbers, *unpruned, num_key_value_heads)
    refuse_unclaimed(site)
    refuse_other_forward(site)
    if is_registered(module) and layout.forward is None and kept is None:
        refuse_unknown_sizes(site)
    return site


def _head_dim(module: nn.Module, layout: HeadLayout) -> int:
    if callable(layout.head_dim):
        return layout.head_dim(module)
    if isinstance(layout.head_dim, int):
        return layout.head_dim
    if not hasattr(module, layout.head_dim):
        raise Refused(
            f"it has no attribute {layout.head_dim!r}; give `head_dim` as a number, or as a function of the module"
        )
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
            features = num_outputs(base_layer(_submodule(module, module, path)))
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


def _refuse_shared(site: HeadSite, uses: Mapping[int, int]) -> None:
    """What is used twice can't be cut for one of its users."""
    for name, parameter in (*site.module.named_parameters(), *site.projection.named_parameters()):
        if uses[id(parameter)] > 1:
            raise Refused(
                f"its parameter {name} {list(parameter.shape)} is used in another place too (tied weights); "
                "give each place a copy of its own first"
            )
        refuse_hooks(name, parameter)
    projections = [_submodule(site.module, site.parent, path) for path in (*site.paths, site.layout.output)]
    parts = [site.module, *projections] if site.is_output_outside else projections
    if any(uses[id(part)] > 1 for part in parts):
        raise Refused(
            "it shares a projection, or itself, with another place of the model (as ALBERT's layers do); give each "
            "place a copy of its own first"
        )


def _submodule(module: nn.Module, parent: nn.Module, path: str) -> nn.Module:
    try:
        return parent.get_submodule(path[3:]) if path.startswith("../") else module.get_submodule(path)
    except AttributeError:
        raise Refused(f"it has no projection {path!r}; it has {_named_parts(module)}") from None


def _named_parts(module: nn.Module) -> str:
    """What a layout can be made of."""
    return ", ".join((*module._modules, *module._parameters)) or "none"
