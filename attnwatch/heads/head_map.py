"""Map of a model's heads, built once per cut and passed along."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import nn

from attnwatch.capture import find_sites, site_name
from attnwatch.errors import ConfigurationError
from attnwatch.heads.layout import HeadLayout
from attnwatch.heads.refusals import (
    refuse_other_forward,
    refuse_shared,
    refuse_unclaimed,
    refuse_unknown_sizes,
    refuse_wrapped,
    why_no_heads,
)
from attnwatch.heads.site import HeadSite, named_parts
from attnwatch.models.base import ModelFamily, Refused, first_answer, require_head_layout

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class HeadMap:
    """Map of a model's heads, valid until heads are removed or restored.

    Attributes:
        model: model with these heads.
        sites: attention modules whose heads can be removed, by name, in module order.
        refused: reasons why heads of the other attention modules can't be removed, by name.
        names: names of all attention modules, in module order.

    Example:
        >>> HeadMap.of(nn.TransformerEncoderLayer(d_model=32, nhead=4)).kept
        {'self_attn': (0, 1, 2, 3)}
    """

    model: nn.Module
    sites: Mapping[str, HeadSite]
    refused: Mapping[str, str]
    names: tuple[str, ...]

    @classmethod
    def of(cls, model: "nn.Module | HeadMap") -> "HeadMap":
        """Find the heads of a model; a map is returned unchanged."""
        if isinstance(model, HeadMap):
            return model
        sites: dict[str, HeadSite] = {}
        refused: dict[str, str] = {}
        paths = dict(model.named_modules())
        modules = paths.values()
        uses = Counter(id(part) for each in modules for part in (*each._parameters.values(), *each._modules.values()))
        why_none = why_no_heads(modules)
        for path, module in paths.items():
            name = site_name(path, module)
            try:
                known = _first_known(module)
                if known is None:
                    continue
                if why_none:
                    raise Refused(why_none)
                parent = paths[path.rpartition(".")[0]] if path else module
                sites[name] = _site(name, module, parent, *known, uses)
            except Refused as reason:
                refused[name] = str(reason)
        for found in find_sites(model):
            if found.name not in sites and found.name not in refused:
                refused[found.name] = (
                    f"the layout of {type(found.module).__name__} is unknown; describe it in an "
                    f"attnwatch.ModelFamily (its modules and parameters are {named_parts(found.module)})"
                )
        names = (site_name(path, module) for path, module in paths.items())
        return cls(model, sites, refused, tuple(name for name in names if name in sites or name in refused))

    @cached_property
    def num_heads(self) -> dict[str, int]:
        """Number of heads of the unpruned model, by site."""
        return {name: site.num_unpruned_heads for name, site in self.sites.items()}

    @cached_property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the heads that the model still has, by site."""
        return {name: site.kept for name, site in self.sites.items()}

    @cached_property
    def parameter_names(self) -> dict[int, str]:
        """Names of the model's parameters by identity."""
        return {id(parameter): name for name, parameter in self.model.named_parameters()}

    @cached_property
    def paths(self) -> dict[str, str]:
        """Paths of the attention modules in the model, wrappers included, by site."""
        paths = {id(module): path for path, module in self.model.named_modules()}
        return {name: paths[id(site.module)] for name, site in self.sites.items()}

    def require_sites(self, argument: str) -> None:
        """Raise a `ConfigurationError` about the user's argument if no head of the model can be removed."""
        if not self.sites:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.refused.items())[:_SHOWN])
            raise ConfigurationError(
                f"`{argument}` has no attention whose heads can be removed. {reasons or 'It has none.'}"
            )

    def find(self, key: str | int) -> HeadSite:
        """Return the site with this name, or the layer with this number, counted over all attention modules.

        Raises:
            ConfigurationError: there is no such site, or its heads can't be removed.
        """
        name = cast(str, key)
        if isinstance(key, int) and not isinstance(key, bool):
            if not 0 <= key < len(self.names):
                raise ConfigurationError(f"`heads`: there is no layer {key}, the model has 0 to {len(self.names) - 1}.")
            name = self.names[key]
        if name in self.refused:
            raise ConfigurationError(f"`heads`: the heads of {name!r} can't be removed: {self.refused[name]}.")
        if name not in self.sites:
            raise ConfigurationError(f"`heads`: there is no site {name!r}; the model has: {', '.join(self.sites)}.")
        return self.sites[name]


def layout_of(module: nn.Module) -> HeadLayout | None:
    """Return the head layout of a module; None if no family knows the module.

    Raises:
        Refused: the module is known, but its heads can't be removed.
        ConfigurationError: a family failed.
    """
    known = _first_known(module)
    return known and known[1]


def _first_known(module: nn.Module) -> tuple[ModelFamily, HeadLayout] | None:
    """Return the first family that knows a module, and its layout."""

    def ask(family: ModelFamily) -> tuple[ModelFamily, HeadLayout] | None:
        layout = family.head_layout(module)
        if layout is None:
            return None
        require_head_layout(family, type(module), layout)
        return family, layout

    return first_answer(ask)


def _site(
    name: str, module: nn.Module, parent: nn.Module, family: ModelFamily, layout: HeadLayout, uses: Mapping[int, int]
) -> HeadSite:
    """Return the site of a module, or raise `Refused`."""
    refuse_wrapped(module, parent)
    site = HeadSite.resolve(name, module, layout, parent)
    refuse_unclaimed(site)
    refuse_other_forward(site)
    if type(module) in family.heads:  # its author may not know what surgery keeps up to date
        refuse_unknown_sizes(site)
    refuse_shared(site, uses)
    return site
