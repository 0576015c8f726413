"""Attention module whose heads can be removed, and the cut of each of its parameters."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from attnwatch.capture import UNPRUNED_HEADS, kept_heads
from attnwatch.errors import ConfigurationError
from attnwatch.heads.layout import HeadLayout
from attnwatch.heads.projections import (
    ParameterCut,
    adapters,
    base_layer,
    base_of,
    by_output,
    cut_inputs,
    cut_outputs,
    is_conv1d,
    num_inputs,
    num_outputs,
)
from attnwatch.models import Refused


@dataclass(frozen=True, eq=False)
class HeadSite:
    """Attention module whose heads can be removed.

    Attributes:
        name: name as in a recorder's coverage.
        module, layout: the attention module and its head layout.
        parent: module that contains it.
        head_dim: features per head.
        kept: current heads, numbered as in the unpruned model; ascending.
        num_unpruned_heads, num_unpruned_key_value_heads: numbers of heads in the unpruned model.
        num_key_value_heads: current number of key-value heads.
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

    @classmethod
    def resolve(cls, name: str, module: nn.Module, layout: HeadLayout, parent: nn.Module) -> "HeadSite":
        """Find the heads of a module by its layout.

        Raises:
            Refused: the layout does not fit the module.
        """
        head_dim = _head_dim(module, layout)
        num_features = num_inputs(base_layer(_submodule(module, parent, layout.output)))
        num_heads, rest = divmod(num_features, head_dim)
        num_key_values = _num_key_value_heads(module, layout, num_heads, head_dim)
        has_groups = not num_heads or (num_key_values and not num_heads % num_key_values)
        if rest or num_key_values is None or not has_groups:
            raise Refused(
                f"the features of its projections are not a multiple of the head size: {num_features} features enter "
                f"{layout.output!r}, and a head has {head_dim}; correct `head_dim` or the segments of `inputs`"
            )
        kept = kept_heads(module)
        numbers = tuple(range(num_heads)) if kept is None else tuple(kept.tolist())
        unpruned, unpruned_key_values = getattr(module, UNPRUNED_HEADS, (num_heads, num_key_values))
        return cls(name, module, layout, parent, head_dim, numbers, unpruned, unpruned_key_values, num_key_values)

    @property
    def num_heads(self) -> int:
        """Current number of query heads."""
        return len(self.kept)

    @property
    def is_pruned(self) -> bool:
        """True if heads were removed."""
        return self.num_heads < self.num_unpruned_heads

    @cached_property
    def projection(self) -> nn.Module:
        """Output projection, including any adapter around it."""
        return _submodule(self.module, self.parent, self.layout.output)

    @cached_property
    def output(self) -> nn.Module:
        """Output projection without an adapter."""
        return base_layer(self.projection)

    @property
    def output_parameter(self) -> nn.Parameter:
        """Weight parameter of the output projection, in its stored layout."""
        return self.output.get_parameter("weight")

    @property
    def output_weight(self) -> Tensor:
        """Weight of the output projection as [features, heads · head_dim] (a view for Conv1D)."""
        return by_output(self.output)

    @property
    def is_output_outside(self) -> bool:
        """True if the output projection is outside the module."""
        return self.layout.output.startswith("../")

    @property
    def projections(self) -> list[nn.Module]:
        """Input projections that are modules, and the output projection."""
        paths = [path for path in self.layout.inputs if path not in self.module._parameters]
        return [*(_submodule(self.module, self.parent, path) for path in paths), self.projection]

    @property
    def adapters(self) -> list[nn.Module]:
        """Adapters around the projections."""
        return [part for part in (*self.module.modules(), self.projection) if base_of(part) is not None]

    @property
    def needs_a_head(self) -> bool:
        """True if the output projection's adapter needs at least one head."""
        is_adapted_conv1d = self.output is not self.projection and is_conv1d(self.output)
        return is_adapted_conv1d or bool(adapters(self.projection, "lora_magnitude_vector"))

    def groups(self) -> list[list[int]]:
        """Return the heads, numbered as in the unpruned model, grouped by the key-value head that they read."""
        if not self.num_key_value_heads:
            return []
        size = self.num_heads // self.num_key_value_heads
        return [list(self.kept[start : start + size]) for start in range(0, self.num_heads, size)]

    def keep(self, heads: Sequence[int]) -> tuple[list[ParameterCut], int]:
        """Return the cut of each parameter, and the number of key-value heads, if only `heads` stay.

        Raises:
            ConfigurationError: groups in grouped-query attention would differ in size, or an adapter would have no
                heads.
        """
        if not heads and self.needs_a_head:
            raise ConfigurationError(
                f"`heads` are all heads of {self.name!r}: at least one must stay, because the adapter of its output "
                "projection does not work without heads."
            )
        positions = [self.kept.index(head) for head in heads]
        size = self.num_heads // max(self.num_key_value_heads, 1)
        counts = Counter(position // size for position in positions)
        in_group = [counts[group] for group in range(self.num_key_value_heads)]
        if len(set(counts.values())) > 1:
            raise ConfigurationError(
                f"`heads` at {self.name!r}: the key-value heads would be read by {in_group} query heads; grouped-query "
                "attention needs groups of equal size. Remove whole groups, or equally many heads from every group: "
                f"{self.groups()}."
            )
        key_values = [group for group, number in enumerate(in_group) if number]
        return list(self._cuts(positions, key_values)), len(key_values)

    def keep_of_unpruned(self, heads: Sequence[int]) -> tuple[list[ParameterCut], int]:
        """Return the cuts of the unpruned module's parameters to these heads, and the number of key-value heads."""
        kept = tuple(range(self.num_unpruned_heads))
        return replace(self, kept=kept, num_key_value_heads=self.num_unpruned_key_value_heads).keep(heads)

    def cuts_of(self, heads: Sequence[int]) -> list[ParameterCut]:
        """Return the cuts of the unpruned module's parameters to these heads."""
        return self.keep_of_unpruned(heads)[0]

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
        """Return the positions of the features to keep, int64."""
        kept, start = [], 0
        for segment in segments.split("|"):
            has_queries = "q" in segment
            size = self.head_dim * len(segment)
            heads = torch.tensor(queries if has_queries else key_values, dtype=torch.long)
            kept.append(start + (heads[:, None] * size + torch.arange(size)).flatten())
            start += size * (self.num_heads if has_queries else self.num_key_value_heads)
        return torch.cat(kept)


def _head_dim(module: nn.Module, layout: HeadLayout) -> int:
    if isinstance(layout.head_dim, int):
        return layout.head_dim
    if callable(layout.head_dim):
        return layout.head_dim(module)
    if not hasattr(module, layout.head_dim):
        raise Refused(
            f"it has no attribute {layout.head_dim!r}; pass `head_dim` as a number or as a function of the module"
        )
    return getattr(module, layout.head_dim)


def _num_key_value_heads(module: nn.Module, layout: HeadLayout, num_heads: int, head_dim: int) -> int | None:
    """Return the number implied by the features other than the queries'; None if these do not fit."""
    numbers = set()
    for path, segments in layout.inputs.items():
        if path in module._parameters:
            parameter = module._parameters[path]
            if parameter is None:
                continue
            features = parameter.shape[0]
        else:
            features = num_outputs(base_layer(_submodule(module, module, path)))
        parts = segments.split("|")
        of_queries = sum(len(part) for part in parts if "q" in part) * num_heads * head_dim
        of_key_values = sum(len(part) for part in parts if "q" not in part) * head_dim
        if of_key_values:
            numbers.add(divmod(features - of_queries, of_key_values))
        elif features != of_queries:
            return None
    if not numbers:  # query, key and value of each head are interleaved
        return num_heads
    (number, rest), *others = numbers
    return None if others or rest or number < 0 else number


def _submodule(module: nn.Module, parent: nn.Module, path: str) -> nn.Module:
    try:
        return parent.get_submodule(path[3:]) if path.startswith("../") else module.get_submodule(path)
    except AttributeError:
        raise Refused(f"it has no projection {path!r}; it has {named_parts(module)}") from None


def named_parts(module: nn.Module) -> str:
    """Return the names of the submodules and parameters from which a layout can be built."""
    return ", ".join((*module._modules, *module._parameters)) or "none"
