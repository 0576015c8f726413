"""Reversible changes, including those to a module and its projections when its heads change."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attnwatch.capture import KEPT_HEADS, UNPRUNED_HEADS, names_in_forward
from attnwatch.heads.forwards import cache_in, forward_without_heads
from attnwatch.heads.layout import SIZES, HeadLayout
from attnwatch.heads.projections import features_of
from attnwatch.heads.signatures import names_of_arguments
from attnwatch.heads.site import HeadSite

_MISSING = object()


class Change(Protocol):
    """Change that can be made and reverted."""

    def apply(self) -> None:
        """Make the change."""

    def revert(self) -> None:
        """Revert the change, even if `apply` failed halfway."""


def apply_all(changes: Iterable[Change]) -> None:
    """Make all changes, or none if one raises."""
    done = []
    try:
        for change in changes:
            done.append(change)
            change.apply()
    except BaseException:
        for change in reversed(done):
            change.revert()
        raise


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
        """Set the new value."""
        self._put(self.new)

    def revert(self) -> None:
        """Restore the old value."""
        self._put(self.old)

    def _put(self, value: Any) -> None:
        if value is _MISSING:
            self.values.pop(self.name, None)
        else:
            self.values[self.name] = value


@dataclass
class FeatureUpdate:
    """Update of the sizes that a projection, or an adapter around it, stores as attributes to those of its weight."""

    projection: nn.Module
    before: dict[str, Any] = field(default_factory=dict, init=False)

    def apply(self) -> None:
        """Set the sizes to those of the current weight."""
        sizes, values = features_of(self.projection), vars(self.projection)
        self.before = {name: values[name] for name in sizes}
        values.update(sizes)

    def revert(self) -> None:
        """Restore the old sizes."""
        vars(self.projection).update(self.before)


def size_changes(site: HeadSite, kept: Sequence[int]) -> list[Change]:
    """Return the changes to the sizes that a module and its projections store, due once parameters are replaced.

    Args:
        site: the module with its current heads.
        kept: heads that remain afterwards.
    """
    module, values = site.module, vars(site.module)
    cuts, num_key_value_heads = site.keep_of_unpruned(kept)
    changes: list[Change] = [FeatureUpdate(part) for part in (*(cut.module for cut in cuts), *site.adapters)]
    sizes = {
        "heads": (site.num_heads, len(kept)),
        "key-value heads": (site.num_key_value_heads, num_key_value_heads),
        "heads of a group": (_per(site.num_heads, site.num_key_value_heads), _per(len(kept), num_key_value_heads)),
        "features of the heads": (site.num_heads * site.head_dim, len(kept) * site.head_dim),
    }
    for what, names in SIZES.items():
        before, after = sizes[what]
        changes += [AttributeSwap(values, name, after) for name in names if values.get(name) == before]
    is_whole = len(kept) == site.num_unpruned_heads
    for name, (of_whole, of_pruned) in site.layout.when_pruned.items():
        changes.append(AttributeSwap(values, name, of_whole if is_whole else of_pruned))
    numbers = torch.tensor(kept, dtype=torch.float32, device=site.output_parameter.device)
    unpruned = (site.num_unpruned_heads, site.num_unpruned_key_value_heads)
    changes.append(AttributeSwap(module._buffers, KEPT_HEADS, _MISSING if is_whole else numbers))
    changes.append(AttributeSwap(values, UNPRUNED_HEADS, _MISSING if is_whole else unpruned))
    return changes + _forward_changes(site, kept, is_whole)


def _per(num_heads: int, num_key_value_heads: int) -> int:
    return num_heads // max(num_key_value_heads, 1)


def _forward_changes(site: HeadSite, kept: Sequence[int], is_whole: bool) -> list[Change]:
    """Return the changes to a module's config and forward that make it work with these heads."""
    module, values = site.module, vars(site.module)
    changes: list[Change] = []
    config = getattr(module, "config", None)
    if "num_attention_heads" in names_in_forward(type(module)) and not hasattr(module, "num_attention_heads"):
        own = SiteConfig(config, {"num_attention_heads": len(kept)})
        changes.append(AttributeSwap(values, "config", own.whole if is_whole else own))
    forward: Any = _MISSING
    if not kept and site.layout.returns is not None:
        forward = partial(_without_heads, module, site.layout, names_of_arguments(module))
    elif site.layout.forward is not None and not is_whole:
        forward = partial(site.layout.forward, module)
    is_ours = getattr(values.get("forward"), "func", None) in (_without_heads, site.layout.forward)
    if forward is not _MISSING or is_ours:
        changes.append(AttributeSwap(values, "forward", forward))
    return changes


def _without_heads(
    module: nn.Module, layout: HeadLayout, names: tuple[str, ...], *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, None]:
    """Return the module's output when it has no heads, whatever its other arguments.

    Args:
        module, layout: the module without heads, and its layout.
        names: names of the arguments of its forward, in order.
        args, kwargs: arguments of the call.
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
    """A model's config as one of its modules sees it: same values, except for the module's own number of heads."""

    def __init__(self, config: Any, own: Mapping[str, Any]):
        self._config = config.whole if isinstance(config, SiteConfig) else config
        self._own = dict(own)

    @property
    def whole(self) -> Any:
        """Config of the model."""
        return self._config

    def __getattr__(self, name: str) -> Any:
        if name in ("_config", "_own"):  # not set yet while the object is copied
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._config, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SiteConfig":
        return SiteConfig(copy.deepcopy(self._config, memo), self._own)
