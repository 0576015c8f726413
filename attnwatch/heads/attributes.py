"""Attributes of an attention module and its projections that change with the number of heads."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import KEPT_HEADS, UNPRUNED_HEADS, names_in_forward
from attnwatch.heads.forwards import cache_in, forward_without_heads
from attnwatch.heads.layout import SIZES, HeadLayout
from attnwatch.heads.projections import ParameterCut, features_of, is_conv1d
from attnwatch.heads.signatures import names_of_arguments
from attnwatch.heads.site import HeadSite

_MISSING = object()


@dataclass
class AttributeSwap:
    """Change of one entry of an object's `__dict__`, or of another mapping."""

    values: dict[str, Any]
    name: str
    new: Any
    old: Any = field(init=False)

    def __post_init__(self) -> None:
        self.old = self.values.get(self.name, _MISSING)

    def apply(self) -> None:
        """Put the new value."""
        self._put(self.new)

    def revert(self) -> None:
        """Put the old value back."""
        self._put(self.old)

    def _put(self, value: Any) -> None:
        if value is _MISSING:
            self.values.pop(self.name, None)
        else:
            self.values[self.name] = value


def feature_swaps(site: HeadSite, cut: ParameterCut) -> list[AttributeSwap]:
    """Return the changes of the sizes that a projection whose weight is cut has, and an adapter around it."""
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


def attribute_swaps(site: HeadSite, kept: Sequence[int], num_key_value_heads: int) -> list[AttributeSwap]:
    """Return the changes of a module that has the heads of the site now, and `kept` afterwards."""
    module, values = site.module, vars(site.module)
    device = site.output.weight.device
    swaps = [
        AttributeSwap(module._buffers, KEPT_HEADS, torch.tensor(kept, dtype=torch.float32, device=device)),
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
    """Return the changes that the module's code needs to work with these heads, or no longer needs."""
    module, values = site.module, vars(site.module)
    is_whole = len(kept) == site.num_unpruned_heads
    swaps = []
    config = getattr(module, "config", None)
    if "num_attention_heads" in names_in_forward(type(module)) and not hasattr(module, "num_attention_heads"):
        own = SiteConfig(config, {"num_attention_heads": len(kept)})
        swaps.append(AttributeSwap(values, "config", own.whole if is_whole else own))
    forward: Any = _MISSING
    if not kept and site.layout.returns is not None:
        forward = partial(_without_heads, module, site.layout, names_of_arguments(module))
    elif site.layout.forward is not None and not is_whole:
        forward = partial(site.layout.forward, module)
    is_ours = getattr(values.get("forward"), "func", None) in (_without_heads, site.layout.forward)
    if forward is not _MISSING or is_ours:
        swaps.append(AttributeSwap(values, "forward", forward))
    return swaps


def _without_heads(
    module: nn.Module, layout: HeadLayout, names: tuple[str, ...], *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, None]:
    """Return what the module returns without heads, whatever else it is called with.

    Args:
        module: attention module without heads.
        layout: of the module.
        names: of the arguments of its forward, in order.
        args: of the call.
        kwargs: of the call.
    """
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    hidden_states = args[0] if args else kwargs.get(next(iter(names), ""), next(iter(kwargs.values())))
    result = forward_without_heads(
        module,
        None if layout.output.startswith("../") else layout.output,
        hidden_states,
        arguments.get("key_value_states", arguments.get("encoder_hidden_states")),
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

    def __deepcopy__(self, memo: dict[int, Any]) -> "SiteConfig":
        return SiteConfig(copy.deepcopy(self._config, memo), self._own)
