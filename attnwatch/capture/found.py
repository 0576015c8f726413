"""The sites of one model that a capture watches: those that reading its code finds, and those that calls show later."""

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn

from attnwatch.capture.sites import (
    Site,
    SiteKind,
    find_sites,
    find_with_expected,
    functional_site,
    is_of_torch,
    site_name,
    without_relatives,
)
from attnwatch.errors import ConfigurationError, NoAttentionError

_WAYS = "scaled_dot_product_attention, torch.nn.MultiheadAttention or transformers' attention interface"


class Sites:
    """Sites by name, in module order.

    Args:
        model: that has them.
        patterns: globs of the names that are watched; None means all.
        may_grow: what is called in a first step may turn out to be a site.

    Attributes:
        expected: modules that are sites if they call scaled_dot_product_attention.
        from_calls: names of the sites that calls have shown.

    Raises:
        NoAttentionError: there are none that can be read, and there can't be.
        ConfigurationError: a pattern matches no name.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str] | None, *, may_grow: bool):
        self._model_name = type(model).__name__
        self._patterns = patterns
        self._modules: dict[nn.Module, str] = {}
        self.from_calls: set[str] = set()
        self.expected: list[Site] = []
        if may_grow:
            self._found, self.expected = find_with_expected(model)
            self._modules = {module: site_name(path, module) for path, module in model.named_modules()}
        else:
            self._found = find_sites(model)
        self._check_patterns()
        self._select()
        if not self.readable and not self._may_come():
            raise NoAttentionError(self.why_none())

    @property
    def readable(self) -> list[Site]:
        return [site for site in self._selected.values() if site.kind is not SiteKind.UNREADABLE]

    @property
    def names(self) -> list[str]:
        """Of the watched sites, the unreadable ones included."""
        return list(self._selected)

    @property
    def is_explained(self) -> bool:
        """Whether reading has found sites, and what looks like attention beside them computes it by hand."""
        return bool(self.readable) and all(site.is_certain for site in self._found)

    def __contains__(self, name: str) -> bool:
        return name in self._selected

    def __getitem__(self, name: str) -> Site:
        return self._selected[name]

    def reasons(self) -> dict[str, str]:
        return {name: site.reason for name, site in self._selected.items() if site.reason}

    def others(self) -> list[Site]:
        """Sites whose calls of the function are not delivered, and belong to no site around them either."""
        watched = self.readable
        return [site for site in self._found if site not in watched or site.kind is SiteKind.INTERFACE]

    def of(self, module: nn.Module) -> Site | None:
        """The readable or expected site that this module is."""
        for site in (*self._found, *self.expected):
            if site.module is module and site.kind is not SiteKind.UNREADABLE:
                return site
        return None

    def new(self, module: nn.Module, *, is_hidden: bool) -> Site | None:
        """The site that this module of the model has turned out to be; None where it can't be one."""
        name = self._modules.get(module)
        if name is None or is_of_torch(module):
            return None
        return dataclasses.replace(functional_site(name, module), is_hidden=is_hidden)

    def named(self, name: str) -> Site | None:
        """The same by its name."""
        module = next((module for module, other in self._modules.items() if other == name), None)
        return None if module is None or self.of(module) in self._found else self.new(module, is_hidden=True)

    def add(self, site: Site) -> None:
        """A site that a call has shown."""
        order = {module: index for index, module in enumerate(self._modules)}
        self.from_calls.add(site.name)
        self.expected = [other for other in self.expected if other.module is not site.module]
        found = [other for other in self._found if other.module is not site.module]
        found = sorted([*found, site], key=lambda each: order[each.module])
        self._found = without_relatives(found)
        self._select()

    def update(self, site: Site) -> None:
        """More is known of a site of this module."""
        self._found = [site if other.module is site.module else other for other in self._found]
        self.expected = [site if other.module is site.module else other for other in self.expected]
        self._select()

    def why_none(self) -> str:
        """That the model has no attention, or none that can be read."""
        if not self._found:
            return f"`model` ({self._model_name}) has no attention: no module calls {_WAYS}."
        listed = "; ".join(f"{site.name}: {site.reason}" for site in list(self._selected.values())[:3])
        return f"`model` ({self._model_name}) has no attention that can be read. {listed}."

    def is_watched(self, name: str) -> bool:
        return self._patterns is None or any(fnmatch(name, pattern) for pattern in self._patterns)

    def _select(self) -> None:
        self._selected = {site.name: site for site in self._found if self.is_watched(site.name)}

    def _may_come(self) -> bool:
        """Whether calls may show sites where reading has found none."""
        is_by_hand = any(self._found) and all(site.is_certain for site in self._found)
        return bool(self.expected) or (not is_by_hand and not all(map(is_of_torch, self._modules)))

    def _check_patterns(self) -> None:
        names = [site.name for site in self._found]
        possible = {*names, *(name for module, name in self._modules.items() if not is_of_torch(module))}
        for pattern in self._patterns or ():
            if names and not any(fnmatch(name, pattern) for name in possible):
                raise ConfigurationError(f"`sites`: {pattern!r} matches none of the model's sites: {', '.join(names)}.")
