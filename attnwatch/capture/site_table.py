"""Sites of one model that a capture observes: those found in its code, and those that calls reveal later."""

from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn

from attnwatch.capture.calls.base import FunctionCall
from attnwatch.capture.code_names import CodeNames, is_of_torch
from attnwatch.capture.sites import (
    Site,
    find_sites,
    find_with_expected,
    function_calls,
    known_calls,
    make_site,
    site_name,
    without_relatives,
)
from attnwatch.errors import ConfigurationError, NoAttentionError


class SiteTable:
    """Sites by name, in module order.

    Args:
        model: model with the sites.
        patterns: glob patterns of the names to observe; None means all.
        may_grow: True if calls in a first step may reveal more sites.
        may_be_empty: True to raise no error if there are no sites and calls can't reveal any.

    Attributes:
        expected: modules that are sites if they call an attention function.
        from_calls: names of the sites that calls have revealed.

    Raises:
        NoAttentionError: there are no readable sites, and calls can't reveal any.
        ConfigurationError: a pattern matches no name.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str] | None, *, may_grow: bool, may_be_empty: bool = False):
        self._model_name = type(model).__name__
        self._patterns = patterns
        self._names = {module: site_name(path, module) for path, module in model.named_modules()} if may_grow else {}
        self.from_calls: set[str] = set()
        self._found, self.expected = find_with_expected(model) if may_grow else (find_sites(model), [])
        self._check_patterns()
        self._select()
        if not self.readable and not may_be_empty and not self._may_come():
            raise NoAttentionError(self.why_none())

    @property
    def readable(self) -> list[Site]:
        """Watched sites that can be read."""
        return [site for site in self._selected.values() if site.is_readable]

    @property
    def watched(self) -> list[Site]:
        """Sites whose calls are delivered, including those that are only expected."""
        return [*self.readable, *(site for site in self.expected if self.is_watched(site.name))]

    @property
    def others(self) -> list[Site]:
        """Sites whose calls are not delivered and must not be attributed to an enclosing site."""
        return [site for site in self._found if not (site.is_readable and site.name in self._selected)]

    @property
    def names(self) -> list[str]:
        """Names of the watched sites, including unreadable ones."""
        return list(self._selected)

    @property
    def is_explained(self) -> bool:
        """True if readable sites were found, and all other attention-like modules compute attention by hand."""
        return bool(self.readable) and all(site.is_certain for site in self._found)

    def __contains__(self, name: str) -> bool:
        return name in self._selected

    def __getitem__(self, name: str) -> Site:
        return self._selected[name]

    def reasons(self) -> dict[str, str]:
        """Return the reasons why sites can't be read, by name."""
        return {name: site.reason for name, site in self._selected.items() if site.reason}

    def of(self, module: nn.Module) -> Site | None:
        """Return the readable or expected site of this module; None if there is none."""
        return next((site for site in (*self._found, *self.expected) if site.module is module and site.calls), None)

    def new(self, module: nn.Module, calls: Sequence[FunctionCall], code: CodeNames) -> Site | None:
        """Return the site for a module that turned out to be one; None if it can't be one."""
        name = self._names.get(module)
        return None if name is None or is_of_torch(module) else make_site(name, module, calls, code)

    def named(self, name: str) -> Site | None:
        """Return the site for the module of this name, found elsewhere; None if it is known already or not a site."""
        module = next((module for module, other in self._names.items() if other == name), None)
        if module is None or self.of(module) in self._found:
            return None
        calls = [call for call in function_calls() if call.function is not None]
        return self.new(module, calls, CodeNames(held=tuple(call.function for call in calls)))

    def add(self, site: Site) -> None:
        """Add a site that a call revealed, or update one about which a call revealed more."""
        if site.module not in {other.module for other in self._found if other.is_readable}:
            self.from_calls.add(site.name)
        self.expected = [other for other in self.expected if other.module is not site.module]
        found = {other.module: other for other in self._found} | {site.module: site}
        self._found = without_relatives([found[module] for module in self._names if module in found])
        self._select()

    def why_none(self) -> str:
        """Return the message for a model that has no attention, or none that can be read."""
        if not self._found:
            return f"`model` ({self._model_name}) has no attention: no module calls {known_calls()}."
        listed = "; ".join(f"{site.name}: {site.reason}" for site in list(self._selected.values())[:3])
        return f"`model` ({self._model_name}) has no attention that can be read. {listed}."

    def is_watched(self, name: str) -> bool:
        """Return whether a site with this name is watched."""
        return self._patterns is None or any(fnmatch(name, pattern) for pattern in self._patterns)

    def _select(self) -> None:
        self._selected = {site.name: site for site in self._found if self.is_watched(site.name)}

    def _may_come(self) -> bool:
        """Return whether calls may reveal sites although reading the code found none."""
        is_by_hand = bool(self._found) and all(site.is_certain for site in self._found)
        return bool(self.expected) or (not is_by_hand and not all(map(is_of_torch, self._names)))

    def _check_patterns(self) -> None:
        names = [site.name for site in self._found]
        possible = {*names, *(name for module, name in self._names.items() if not is_of_torch(module))}
        for pattern in self._patterns or ():
            if names and not any(fnmatch(name, pattern) for name in possible):
                raise ConfigurationError(f"`sites`: {pattern!r} matches none of the model's sites: {', '.join(names)}.")
