"""Atomic removal of heads from a model and its optimizers."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.changes import AttributeSwap, Change, apply_all, size_changes
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.optimizer_state import Take, plan_swaps
from attnwatch.heads.projections import ParameterCut
from attnwatch.heads.site import HeadSite

HeadsBySite = Mapping[str, Sequence[int]] | Mapping[int, Sequence[int]] | Mapping[str | int, Sequence[int]]
"""Heads, numbered as in the unpruned model, by the names or numbers of their sites."""


class Surgery:
    """Planned cut, which `apply` makes and `revert` undoes. Planning changes nothing.

    Args:
        model: the model, or its `HeadMap`.
        removed: heads to remove.
        optimizers: optimizers that hold the model's parameters.

    Attributes:
        removed: heads to remove, by site in the order of the model.

    Raises:
        ConfigurationError: a part of the cut is impossible.
    """

    def __init__(
        self,
        model: nn.Module | HeadMap,
        removed: HeadsBySite,
        optimizers: Iterable[Optimizer] = (),
    ):
        heads = HeadMap.of(model)
        optimizers = _checked_optimizers(heads.model, optimizers)
        _refuse_data_parallel(heads.model)
        self._changes: list[Change] = []
        replaced: dict[nn.Parameter, tuple[nn.Parameter, Take]] = {}
        kept_by_site = _checked(heads, removed)
        self.removed = {
            name: tuple(head for head in site.kept if head not in kept_by_site[name])
            for name, site in heads.sites.items()
            if name in kept_by_site
        }
        for name, kept in kept_by_site.items():
            for cut in heads.sites[name].keep(kept)[0]:
                self._cut_parameter(cut, replaced)
            self._changes += size_changes(heads.sites[name], kept)
        self._changes += plan_swaps(optimizers, replaced)

    def apply(self) -> None:
        """Make the cut."""
        apply_all(self._changes)

    def revert(self) -> None:
        """Undo the cut."""
        for change in reversed(self._changes):
            change.revert()

    def _cut_parameter(self, cut: ParameterCut, replaced: dict[nn.Parameter, tuple[nn.Parameter, Take]]) -> None:
        old = cut.parameter
        take = partial(_take, dim=cut.dim, kept=cut.kept)
        with torch.no_grad():
            left = take(old.detach())
            new = replaced_parameter(old, left if cut.scale is None else left * cut.scale())
            new.grad = None if old.grad is None else take(old.grad)
        replaced[old] = (new, take)
        self._changes.append(AttributeSwap(cut.module._parameters, cut.name, new))


def replaced_parameter(old: nn.Parameter, value: Tensor) -> nn.Parameter:
    """Return a parameter with this value and the attributes of the old parameter."""
    new = nn.Parameter(value.to(old.device), requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    return new


def _take(tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
    return tensor.index_select(dim, kept.to(tensor.device)).contiguous()


def _checked(heads: HeadMap, removed: HeadsBySite) -> dict[str, list[int]]:
    """Return the heads to keep at each site that loses some."""
    if not isinstance(removed, Mapping):
        raise ConfigurationError(f"`heads` must map sites to lists of heads, got {type(removed).__name__}.")
    heads.require_sites("model")
    kept: dict[str, list[int]] = {}
    for key, gone in removed.items():
        site = heads.find(key)
        if site.name in kept:
            raise ConfigurationError("`heads` names a site twice, once by its name and once by its index.")
        checked = _checked_heads(site, gone)
        kept[site.name] = [head for head in site.kept if head not in checked]
    if not any({**heads.kept, **kept}.values()):
        raise ConfigurationError("`heads` are all heads of the model: at least one must stay.")
    return {name: left for name, left in kept.items() if len(left) < heads.sites[name].num_heads}


def _refuse_data_parallel(model: nn.Module) -> None:
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ConfigurationError(
            "`model` is wrapped in DistributedDataParallel, which keeps using the parameters it was created with: "
            "cut the wrapped module on every process, and wrap it again."
        )


def _checked_heads(site: HeadSite, heads: Sequence[int]) -> set[int]:
    is_list = isinstance(heads, Iterable) and not isinstance(heads, str | bytes)
    heads = list(heads) if is_list else heads
    if not is_list or not all(isinstance(head, int) and not isinstance(head, bool) for head in heads):
        raise ConfigurationError(f"`heads` at {site.name!r} must be a list of integers, got {heads!r}.")
    for head in heads:
        if not 0 <= head < site.num_unpruned_heads:
            raise ConfigurationError(
                f"`heads`: {site.name!r} has no head {head}; its heads are 0 to {site.num_unpruned_heads - 1}."
            )
        if head not in site.kept:
            raise ConfigurationError(f"`heads`: head {head} of {site.name!r} was already removed; it has {site.kept}.")
    if len(set(heads)) < len(heads):
        raise ConfigurationError(f"`heads` at {site.name!r} names a head twice: {list(heads)}.")
    return set(heads)


def _checked_optimizers(model: nn.Module, optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    if not isinstance(optimizers, Iterable):
        raise ConfigurationError(f"`optimizers` must be a list of optimizers, got {type(optimizers).__name__}.")
    optimizers = list(optimizers)
    parameters = set(model.parameters())
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise ConfigurationError(f"`optimizers` must be torch optimizers, got {type(optimizer).__name__}.")
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        if not held & parameters:
            raise ConfigurationError(
                f"`optimizers`: this {type(optimizer).__name__} holds none of the model's parameters; "
                "was it made for another model, or before the model was changed?"
            )
    return optimizers
