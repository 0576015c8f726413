"""Attention calls of one model, observed while it runs."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

from torch import nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture.call_owners import enter_unwatched, forget_interrupted, hooked, shown_to
from attnwatch.capture.calls.base import FunctionCall
from attnwatch.capture.code_names import CodeNames
from attnwatch.capture.compilation import compiles_anything, is_compiled
from attnwatch.capture.delivery import CallInputs, subscribe, unsubscribe
from attnwatch.capture.forward_pass import ForwardPass
from attnwatch.capture.forwards import ForwardCounts, Remember, failed_forwards_undone
from attnwatch.capture.positions import QueryMasks, kept_positions
from attnwatch.capture.site_table import SiteTable
from attnwatch.capture.sites import Site, function_calls
from attnwatch.models import ModelFamily
from attnwatch.plugins import named_errors
from attnwatch.utils.messages import warn
from attnwatch.utils.versions import warn_if_untested

OBSERVED = "observed"


def is_observed(reason: str) -> bool:
    """Return whether a coverage entry says "observed", possibly with a remark."""
    return reason.startswith(OBSERVED)


Observer = Callable[[str, AttentionInputs, ForwardPass], None]
"""Function called with a site's name, the inputs of its attention call, and the kind of forward it belongs to."""


class Capture:
    """Attention calls of a model, passed to an observer while the capture is attached and armed.

    The model's computation is unchanged: calls are read and passed on. An error in the observer, or in a plugin that
    reads calls, marks the site and emits one warning; the model continues.

    Args:
        model: any module.
        observer: function that receives the calls, see `Observer`.
        sites: glob patterns of site names; None means all.
        may_grow: True to also add, until `stop_looking`, modules that code reading did not find but that call an
            attention function.
        may_be_empty: True to raise no error if the model has no attention that can be read.

    Attributes:
        armed: True if calls of this thread reach the observer.
        num_calls: number of calls received while armed.

    Raises:
        NoAttentionError: the model has no attention, or none that can be read; with `may_grow`, only if that is
            certain.
        ConfigurationError: a pattern matches no site.
    """

    def __init__(
        self,
        model: nn.Module,
        observer: Observer,
        *,
        sites: Sequence[str] | None = None,
        may_grow: bool = False,
        may_be_empty: bool = False,
    ):
        self._armed_thread: int | None = None
        self._is_attached = False
        self._observer = observer
        self._model = model
        self._looks = may_grow
        self._sites = SiteTable(model, sites, may_grow=may_grow, may_be_empty=may_be_empty)
        self._reasons = self._sites.reasons()
        self._seen: set[str] = set()
        self.num_calls = 0
        self._failed: set[str] = set()
        self._forwards = ForwardCounts(model, {site.name: site.module for site in self._sites.readable})
        self._patches = contextlib.ExitStack()
        self._reference = weakref.ref(self)
        self._query_masks = QueryMasks()
        self._families: dict[str, ModelFamily] = {}

    @property
    def armed(self) -> bool:
        """True if calls of this thread reach the observer."""
        return self._armed_thread == threading.get_ident()

    @armed.setter
    def armed(self, value: bool) -> None:
        self._armed_thread = threading.get_ident() if value else None

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be read, in module order, including those discovered by their calls."""
        return tuple(site.name for site in self._sites.readable)

    @property
    def sites_from_calls(self) -> frozenset[str]:
        """Names of the sites discovered by their calls instead of the code."""
        return frozenset(self._sites.from_calls)

    @property
    def has_seen_any(self) -> bool:
        """True if a call of any site was read so far."""
        return bool(self._seen)

    def module(self, site: str) -> nn.Module:
        """Return the module of a site."""
        return self._sites[site].module

    def coverage(self) -> dict[str, str]:
        """Return `"observed"`, with a remark if it runs several times, or the reason why it is not, for each site."""
        return {name: self._reasons.get(name) or self._status_of(name) for name in self._sites.names}

    def silent(self) -> dict[str, str]:
        """Return the reasons for sites in train mode whose forward ran without a call while counted, by name."""
        ran = self._forwards.ran - self._seen - self._reasons.keys()
        return {name: self._status_of(name) for name in self._sites.names if name in ran and self.module(name).training}

    def _status_of(self, name: str) -> str:
        if name not in self._seen:
            return self._forwards.why_silent(self._sites[name])
        calls = self._forwards.calls_per_forward(name)
        if calls == 1:
            return OBSERVED
        return f"{OBSERVED}; it runs {calls} times per forward with the same weights; statistics cover all calls"

    def attach(self) -> None:
        """Start observing calls; `detach`, or the deletion of the capture, restores everything."""
        warn_if_untested("torch", self._model)
        watched = self._sites.watched
        has_owners = any(site.enter is not enter_unwatched for site in watched)
        with contextlib.ExitStack() as patches:
            for site in watched:
                self._subscribe(site, patches)
            for site in (*watched, *self._sites.others) if has_owners else ():
                patches.enter_context(hooked(site.module, site.enter))
            looked_for = function_calls() if self._looks else ()
            for call in dict.fromkeys((*(call for site in watched for call in site.calls), *looked_for)):
                patches.enter_context(call.watched([site for site in watched if call in site.calls]))
            self._patches = patches.pop_all()
        weakref.finalize(self, self._patches.close).atexit = False
        self._is_attached = True

    def _subscribe(self, site: Site, patches: contextlib.ExitStack) -> None:
        subscribe(site.module, self._reference, site.name)
        patches.callback(unsubscribe, site.module, self._reference)

    def detach(self) -> None:
        """Restore the original state. May be called twice."""
        self.armed = self._is_attached = False
        self._patches.close()

    @contextlib.contextmanager
    def arm(self, *, counts_forwards: bool = False, remember: Remember | None = None) -> Iterator[None]:
        """Let calls of this thread reach the observer while the context is open.

        Args:
            counts_forwards: True to count, once, the forwards that run, so that the coverage can explain missing calls.
            remember: function called when a forward of the model begins; the function that it returns is called if that
                forward raises.
        """
        forget_interrupted()
        self.armed = True
        try:
            with contextlib.ExitStack() as watching:
                if self._looks:
                    self._discover(watching)
                if counts_forwards:
                    watching.enter_context(self._forwards.counted())
                if remember is not None:
                    watching.enter_context(failed_forwards_undone(self._model, lambda: self.armed, remember))
                yield
        finally:
            forget_interrupted()
            self.armed = False
            self._query_masks.clear()

    def _discover(self, watching: contextlib.ExitStack) -> None:
        watching.enter_context(shown_to(self))
        is_worth_it = not self._sites.is_explained or not compiles_anything()
        if is_worth_it and not is_compiled(self._model):
            for call in function_calls():
                watching.enter_context(call.discovering(self._model, self))

    def stop_looking(self) -> None:
        """Stop looking for new sites."""
        self._looks = False

    def why_none(self) -> str:
        """See `SiteTable.why_none`."""
        return self._sites.why_none()

    def find(self, module: nn.Module, call: FunctionCall, *, by_name: bool) -> bool:
        """Record a module discovered by its call. Return whether function calls in its forward are delivered."""
        if not self.armed:
            return False
        site = self._sites.of(module)
        held = CodeNames(held=() if by_name else (call.function,))
        if site is None:
            site = self._sites.new(module, [call], held)
            if site is None:
                return False
            self._add(site)
        elif site.calls_functions and not by_name and not site.code.holds(call.function):
            site = dataclasses.replace(site, code=site.code | held)
            self._add(site)
        return site.calls_functions and self._sites.is_watched(site.name)

    def adopt(self, names: Sequence[str]) -> None:
        """Add sites with these names, discovered elsewhere, if the model has such modules."""
        for name in names:
            site = None if name in self.sites else self._sites.named(name)
            if site is not None:
                self._add(site)

    def _add(self, site: Site) -> None:
        """Watch a site discovered by its call, or a newly discovered kind of call of a site."""
        known = self._sites.of(site.module)
        self._sites.add(site)
        self._forwards.add(site.name, site.module)
        if not self._is_attached or known is site:
            return
        self._patches.enter_context(hooked(site.module, site.enter))
        if self._sites.is_watched(site.name):
            if known is None:
                self._subscribe(site, self._patches)
            for call in site.calls:
                self._patches.enter_context(call.watched([site]))

    def receive(self, site: str, inputs: CallInputs, gradient: int) -> None:
        """Receive one call of a site, while armed."""
        self.num_calls += 1
        if site in self._failed:
            return
        if site not in self._sites:
            self._add(next(each for each in self._sites.expected if each.name == site))
        module, family = self._sites[site].module, self._family_of(site)
        with named_errors(family):
            reason = family.refuses_call(module) or (inputs if isinstance(inputs, str) else _why_not(inputs))
        if isinstance(inputs, str) or reason:
            if gradient or site not in self._seen:  # otherwise the site is observed, except for this call
                self._reasons[site] = reason
            return
        with named_errors(family):
            inputs = family.adjust_call(module, inputs)
        is_cross = self._sites[site].is_cross
        if is_cross or not inputs.has_positions or inputs.num_queries != inputs.num_keys:
            inputs = dataclasses.replace(inputs, has_positions=False)
        else:
            mask, positions = self._query_masks.of(inputs), kept_positions(inputs.num_queries)
            inputs = dataclasses.replace(inputs, query_mask=mask, positions=positions)
        is_whole = bool(gradient) or is_cross or inputs.num_queries >= inputs.num_keys
        self._observer(site, inputs, ForwardPass(gradient, is_whole, module.training))
        self._seen.add(site)
        self._reasons.pop(site, None)

    def begin(self, site: str) -> None:
        """Record that the forward of a site begins, while armed."""
        if site in self._sites:
            self._forwards.note(site)

    def _family_of(self, site: str) -> ModelFamily:
        """Return the model family that handles the calls of a site, or a neutral one."""
        if site not in self._families:
            module = self._sites[site].module
            known = (family for family in ModelFamily.registry.values() if family.has_own_calls(module))
            self._families[site] = next(known, ModelFamily())
        return self._families[site]

    def fail(self, site: str, error: Exception) -> None:
        """Stop observing a site after an error, and warn once."""
        if site in self._failed:
            return
        self._failed.add(site)
        self._reasons[site] = f"watching failed with {type(error).__name__}: {error}"
        warn(f"{site!r} is no longer watched, training continues: {type(error).__name__}: {error}")


def _why_not(inputs: AttentionInputs) -> str:
    for tensor in (inputs.query, inputs.key):
        if tensor.is_nested:
            return "nested tensors are not observed; use a padded batch"
        if tensor.device.type == "meta":
            return "tensors on the meta device have no values"
    return ""
