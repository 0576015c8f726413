"""Removes heads from a model and from its optimizers: all of it, or nothing."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from attnwatch.capture import KEPT_HEADS, UNPRUNED_HEADS, names_in_forward, site_name
from attnwatch.errors import ConfigurationError
from attnwatch.heads.forwards import cache_in, forward_without_heads
from attnwatch.heads.heads import HeadSite, head_sites
from attnwatch.heads.layouts import SIZES, HeadLayout
from attnwatch.heads.optimizer_state import ParameterSwap, Take, plan_swaps
from attnwatch.heads.projections import ParameterCut, features_of, is_conv1d
from attnwatch.heads.signatures import names_of_arguments

MISSING = object()


@dataclass
class AttributeSwap:
    """An entry of an object's `__dict__`, or another mapping, changes."""

    values: dict
    name: str
    new: Any
    old: Any = field(init=False)

    def __post_init__(self):
        self.old = self.values.get(self.name, MISSING)

    def apply(self) -> None:
        self._put(self.new)

    def revert(self) -> None:
        self._put(self.old)

    def _put(self, value: Any) -> None:
        if value is MISSING:
            self.values.pop(self.name, None)
        else:
            self.values[self.name] = value


class Surgery:
    """A cut that is planned: `apply` makes it, `revert` takes it back. Planning changes nothing.

    Args:
        model: to be cut.
        removed: numbers of heads, as in the unpruned model, by the names of their sites.
        optimizers: that hold the model's parameters.

    Raises:
        ConfigurationError: something of it is impossible.
    """

    def __init__(self, model: nn.Module, removed: Mapping[str, Sequence[int]], optimizers: Iterable[Optimizer] = ()):
        optimizers = _checked_optimizers(model, optimizers)
        _refuse_wrapped(model)
        sites = _checked(model, removed)
        self._changes: list[AttributeSwap | ParameterSwap] = []
        replaced: dict[nn.Parameter, tuple[nn.Parameter, Take]] = {}
        for site, kept in sites:
            cuts, num_key_value_heads = site.keep(kept)
            for cut in cuts:
                self._cut_parameter(cut, replaced)
                self._changes += _feature_swaps(site, cut)
            self._changes += attribute_swaps(site, kept, num_key_value_heads)
        self._changes += plan_swaps(optimizers, replaced)

    def apply(self) -> None:
        apply_all(self._changes)

    def revert(self) -> None:
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


def apply_all(changes: "Iterable[AttributeSwap | ParameterSwap | Surgery]") -> None:
    """All of them, or none where one raises."""
    done = []
    try:
        for change in changes:
            done.append(change)
            change.apply()
    except BaseException:
        for change in reversed(done):
            change.revert()
        raise


def replaced_parameter(old: nn.Parameter, value: Tensor) -> nn.Parameter:
    """A parameter that says of itself what the old one did."""
    new = nn.Parameter(value.to(old.device), requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    return new


def _take(tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
    return tensor.index_select(dim, kept.to(tensor.device)).contiguous()


def _checked(model: nn.Module, removed: Mapping[str, Sequence[int]]) -> list[tuple[HeadSite, list[int]]]:
    """The sites, and the heads that stay of each."""
    if not isinstance(removed, Mapping):
        raise ConfigurationError(f"`heads` must map sites to lists of heads, got {type(removed).__name__}.")
    sites, refused = head_sites(model)
    if not sites:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
        raise ConfigurationError(f"`model` has no attention whose heads can be removed. {reasons or 'It has none.'}")
    result = []
    for key, heads in removed.items():
        site = _site(key, model, sites, refused)
        gone = _checked_heads(site, heads)
        result.append((site, [head for head in site.kept if head not in gone]))
    if len({site.name for site, _ in result}) < len(result):
        raise ConfigurationError("`heads` names a site twice, once by its name and once by its index.")
    left = {site.name: site.num_heads for site in sites.values()} | {site.name: len(kept) for site, kept in result}
    if not any(left.values()):
        raise ConfigurationError("`heads` are all heads of the model: at least one must stay.")
    return [(site, kept) for site, kept in result if len(kept) < site.num_heads]


def _refuse_wrapped(model: nn.Module) -> None:
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ConfigurationError(
            "`model` is wrapped in DistributedDataParallel, which goes on with the parameters that it was made with: "
            "cut the module in it on every process, and wrap it anew."
        )


def _site(key: str | int, model: nn.Module, sites: Mapping[str, HeadSite], refused: Mapping[str, str]) -> HeadSite:
    if isinstance(key, int) and not isinstance(key, bool):
        names = [site_name(path, module) for path, module in model.named_modules()]
        names = [name for name in names if name in sites or name in refused]
        if not 0 <= key < len(names):
            raise ConfigurationError(f"`heads`: there is no layer {key}, the model has 0 to {len(names) - 1}.")
        key = names[key]
    if key in refused:
        raise ConfigurationError(f"`heads`: the heads of {key!r} can't be removed: {refused[key]}.")
    if key not in sites:
        raise ConfigurationError(f"`heads`: there is no site {key!r}; the model has: {', '.join(sites)}.")
    return sites[key]


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
            raise ConfigurationError(f"`heads`: head {head} of {site.name!r} was removed before; it has {site.kept}.")
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


# What a module and its projections say about their sizes.


def _feature_swaps(site: HeadSite, cut: ParameterCut) -> list[AttributeSwap]:
    """Of the projection whose weight is cut, and of an adapter around it."""
    if cut.name != "weight":
        return []
    around = [adapter for adapter in site.adapters if adapter.base_layer is cut.module]
    before = cut.parameter.shape[cut.dim]
    return [
        AttributeSwap(vars(module), name, len(cut.kept))
        for module in (cut.module, *around)
        for dim, (name, size) in enumerate(features_of(module).items())
        if size == before and (dim == cut.dim) != (module is not cut.module and is_conv1d(cut.module))
    ]


def attribute_swaps(site: HeadSite, kept: list[int], num_key_value_heads: int) -> list[AttributeSwap]:
    """What the module says of its heads when it has these, and until then has those of the site."""
    module, values = site.module, vars(site.module)
    swaps = [
        AttributeSwap(
            module._buffers, KEPT_HEADS, torch.tensor(kept, dtype=torch.float32, device=site.output.weight.device)
        ),
        AttributeSwap(values, UNPRUNED_HEADS, (site.num_unpruned_heads, site.num_unpruned_key_value_heads)),
    ]
    group = len(kept) // max(num_key_value_heads, 1)
    sizes = {
        "heads": (site.num_heads, len(kept)),
        "key-value heads": (site.num_key_value_heads, num_key_value_heads),
        "heads of a group": (site.num_heads // max(site.num_key_value_heads, 1), group),
        "features of the heads": (site.num_heads * site.head_dim, len(kept) * site.head_dim),
    }
    for what, names in SIZES.items():
        before, after = sizes[what]
        swaps += [AttributeSwap(values, name, after) for name in names if values.get(name) == before]
    swaps += [AttributeSwap(values, name, value) for name, value in site.layout.when_pruned.items()]
    return swaps + forward_swaps(site, kept)


def forward_swaps(site: HeadSite, kept: Sequence[int]) -> list[AttributeSwap]:
    """What the module's code needs to work with these heads, or without them what it needed."""
    module, values = site.module, vars(site.module)
    is_whole = len(kept) == site.num_unpruned_heads
    swaps = []
    config = getattr(module, "config", None)
    if "num_attention_heads" in names_in_forward(type(module)) and not hasattr(module, "num_attention_heads"):
        own = SiteConfig(config, {"num_attention_heads": len(kept)})
        swaps.append(AttributeSwap(values, "config", own.whole if is_whole else own))
    if not kept and site.layout.returns is not None:
        forward = partial(_without_heads, module, site.layout, names_of_arguments(module))
    elif site.layout.forward is not None and not is_whole:
        forward = partial(site.layout.forward, module)
    else:
        forward = MISSING
    ours = getattr(values.get("forward"), "func", None) in (_without_heads, site.layout.forward)
    if forward is not MISSING or ours:
        swaps.append(AttributeSwap(values, "forward", forward))
    return swaps


def _without_heads(
    module: nn.Module, layout: HeadLayout, names: tuple[str, ...], *args, **kwargs
) -> Tensor | tuple[Tensor, None]:
    """What the module returns, whatever else it is called with: `names` are those of its forward's arguments."""
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    hidden_states = args[0] if args else kwargs.get(next(iter(names), ""), next(iter(kwargs.values())))
    key_value_states = arguments.get("key_value_states", arguments.get("encoder_hidden_states"))
    output = None if layout.output.startswith("../") else layout.output
    result = forward_without_heads(
        module,
        output,
        hidden_states,
        key_value_states,
        cache_in(arguments),
        arguments.get("cache_position"),
    )
    if layout.after_output is not None:
        result = module.get_submodule(layout.after_output)(result)
    return result if layout.returns == "output" else (result, None)


class SiteConfig:
    """A model's config as one of its modules sees it: with its own number of heads, otherwise the same object's."""

    def __init__(self, config: Any, own: Mapping[str, Any]):
        self._config = config.whole if isinstance(config, SiteConfig) else config
        self._own = dict(own)

    @property
    def whole(self) -> Any:
        """The model's config."""
        return self._config

    def __getattr__(self, name: str) -> Any:
        if name in ("_config", "_own"):  # not there yet while a copy is made
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._config, name)

    def __deepcopy__(self, memo: dict) -> "SiteConfig":
        return SiteConfig(copy.deepcopy(self._config, memo), self._own)
