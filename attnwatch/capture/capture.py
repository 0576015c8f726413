"""Sees the attention calls of one model."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from attnwatch.attention import AttentionInputs, Identity
from attnwatch.capture import looking
from attnwatch.capture.delivery import Reading, register, unregister
from attnwatch.capture.found import Sites
from attnwatch.capture.functional import forget_interrupted, looking_for_sites, patched_functional
from attnwatch.capture.interface import patched_interface
from attnwatch.capture.padding import self_attention_query_mask
from attnwatch.capture.passes import Pass
from attnwatch.capture.positions import kept_positions
from attnwatch.capture.raised import Remember, raised_taken_back
from attnwatch.capture.silent import Forwards
from attnwatch.capture.sites import Site, SiteKind
from attnwatch.utils.messages import warn
from attnwatch.utils.versions import warn_if_untested

OBSERVED = "observed"


def is_observed(reason: str) -> bool:
    """Whether an entry of a coverage says so, perhaps with a remark."""
    return reason.startswith(OBSERVED)


Observer = Callable[[str, AttentionInputs, Pass], None]
"""Called with the site's name, what its attention call was given, and which kind of forward it belongs to."""

# Of which it is known who is padding: layers have two of them in turn, those of sliding windows and the others'.
_MOST_MASKS = 2


class Capture:
    """While attached, hands the attention calls of `model` to `observer` whenever it is armed.

    The model computes what it would compute without: calls are looked at and passed on. An error in the observer
    marks the site, gives one warning, and the model goes on.

    Args:
        model: any module.
        observer: see `Observer`.
        sites: glob patterns of site names; None means all.
        may_grow: modules that reading the code does not find become sites where they are seen to call
            scaled_dot_product_attention, until `stop_looking`.

    Attributes:
        armed: whether calls reach the observer.
        num_calls: that came while armed.

    Raises:
        NoAttentionError: the model has no attention, or none that can be read; with `may_grow` only if that is sure.
        ConfigurationError: a pattern matches no site.
    """

    def __init__(
        self, model: nn.Module, observer: Observer, *, sites: Sequence[str] | None = None, may_grow: bool = False
    ):
        self._armed_thread: int | None = None
        self._is_attached = False
        self._observer = observer
        self._model = model
        self._looks = may_grow
        self._sites = Sites(model, sites, may_grow=may_grow)
        self._reasons = self._sites.reasons()
        self._seen: set[str] = set()
        self.num_calls = 0
        self._failed: set[str] = set()
        self._forwards = Forwards(model, {site.name: site.module for site in self._sites.readable})
        self._patches = contextlib.ExitStack()
        self._reference = weakref.ref(self)
        self._query_masks: dict[Identity, Tensor | None] = {}

    @property
    def armed(self) -> bool:
        """Whether calls of this thread reach the observer."""
        return self._armed_thread == threading.get_ident()

    @armed.setter
    def armed(self, value: bool) -> None:
        self._armed_thread = threading.get_ident() if value else None

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be read, in module order. Those that calls have shown are among them."""
        return tuple(site.name for site in self._sites.readable)

    @property
    def sites_from_calls(self) -> frozenset[str]:
        """Names of the sites that calls have shown, not the code."""
        return frozenset(self._sites.from_calls)

    @property
    def has_seen_any(self) -> bool:
        """Whether a call of any site was read so far."""
        return bool(self._seen)

    def module(self, site: str) -> nn.Module:
        return self._sites[site].module

    def coverage(self) -> dict[str, str]:
        """For every site `"observed"`, with a remark where it is called several times, or the reason why it is not."""
        return {name: self._reasons.get(name) or self._said_of(name) for name in self._sites.names}

    def silent(self) -> dict[str, str]:
        """Sites whose forward ran while forwards were counted, though no call came, and why; those that train only."""
        ran = self._forwards.ran - self._seen - self._reasons.keys()
        return {name: self._said_of(name) for name in self._sites.names if name in ran and self.module(name).training}

    def _said_of(self, name: str) -> str:
        if name not in self._seen:
            return self._forwards.why_silent(self._sites[name])
        calls = self._forwards.calls_per_forward(name)
        if calls == 1:
            return OBSERVED
        return f"{OBSERVED}; it runs {calls} times a forward with the same weights, and statistics are over all calls"

    def attach(self) -> None:
        """Start to see calls; `detach`, or the end of the capture's life, restores everything."""
        warn_if_untested("torch", self._model)
        with contextlib.ExitStack() as patches:
            expected = [site for site in self._sites.expected if self._sites.is_watched(site.name)]
            for site in (*self._sites.readable, *expected):
                self._register(site, patches)
            interface = [site.module for site in self._sites.readable if site.kind is SiteKind.INTERFACE]
            if interface:
                warn_if_untested("transformers", self._model)
                patches.enter_context(patched_interface(interface))
            functional = [site for site in self._sites.readable if site.kind is not SiteKind.INTERFACE] + expected
            if functional or self._looks:
                patches.enter_context(patched_functional(functional, self._sites.others() if functional else ()))
            self._patches = patches.pop_all()
        weakref.finalize(self, self._patches.close).atexit = False
        self._is_attached = True

    def _register(self, site: Site, patches: contextlib.ExitStack) -> None:
        register(site.module, self._reference, site.name)
        patches.callback(unregister, site.module, self._reference)

    def detach(self) -> None:
        """Put everything back as it was. May be called twice."""
        self.armed = self._is_attached = False
        self._patches.close()

    @contextlib.contextmanager
    def arm(self, *, counts_forwards: bool = False, remember: Remember | None = None):
        """While it is open, calls of this thread reach the observer.

        Args:
            counts_forwards: look at which forwards run, once, so that the coverage can tell why no call came.
            remember: called where a forward of the model begins; what it returns is called where that forward raises.
        """
        forget_interrupted()
        self.armed = True
        try:
            with contextlib.ExitStack() as watching:
                watching.enter_context(self._looking())
                if counts_forwards:
                    watching.enter_context(self._forwards.counted())
                if remember is not None:
                    watching.enter_context(raised_taken_back(self._model, lambda: self.armed, remember))
                yield
        finally:
            forget_interrupted()
            self.armed = False
            self._query_masks.clear()

    def _looking(self) -> contextlib.AbstractContextManager[None]:
        if not self._looks:
            return contextlib.nullcontext()
        is_harmless = not looking.keeps_fast_paths(self._model) and not looking.is_compiled(self._model)
        is_worth_it = not self._sites.is_explained or not looking.compiles_anything()
        return looking_for_sites(self, by_any_reference=is_harmless and is_worth_it)

    def stop_looking(self) -> None:
        """From now on the sites are those that are known."""
        self._looks = False

    def why_none(self) -> str:
        """That the model has no attention, or none that can be read."""
        return self._sites.why_none()

    def find(self, module: nn.Module, *, by_name: bool) -> bool:
        """A module has called scaled_dot_product_attention. Returns whether its calls are delivered from there."""
        if not self.armed:
            return False
        site = self._sites.of(module)
        if site is None:
            site = self._sites.new(module, is_hidden=not by_name)
            if site is None:
                return False
            self._add(site)
        elif not by_name and not site.is_hidden and site.kind is SiteKind.FUNCTIONAL:
            site = dataclasses.replace(site, is_hidden=True)
            self._sites.update(site)
            self._watch(site)
        return site.kind is SiteKind.FUNCTIONAL and self._sites.is_watched(site.name)

    def adopt(self, names: Sequence[str]) -> None:
        """Sites of these names, as far as the model has such modules: calls have shown them elsewhere."""
        for name in names:
            site = None if name in self.sites else self._sites.named(name)
            if site is not None:
                self._add(site)

    def _add(self, site: Site) -> None:
        is_expected = any(other.module is site.module for other in self._sites.expected)
        self._sites.add(site)
        self._forwards.add(site.name, site.module)
        if not self._is_attached or is_expected:
            return
        if self._sites.is_watched(site.name):
            self._register(site, self._patches)
            self._watch(site)
        else:
            self._patches.enter_context(patched_functional((), [site]))

    def _watch(self, site: Site) -> None:
        self._patches.enter_context(patched_functional([site]))

    def receive(self, site: str, reading: Reading, gradient: int) -> None:
        """One call of a site, while armed."""
        self.num_calls += 1
        if site in self._failed:
            return
        if site not in self._sites:
            self._add(next(each for each in self._sites.expected if each.name == site))
        reason = reading if isinstance(reading, str) else _why_not(reading)
        if reason:
            if gradient or site not in self._seen:  # else its training is observed, and only this call is not
                self._reasons[site] = reason
            return
        if self._sites[site].is_cross or not reading.has_positions or reading.num_queries != reading.num_keys:
            reading = dataclasses.replace(reading, has_positions=False)
        else:
            reading = dataclasses.replace(
                reading,
                query_mask=self._query_mask(reading),
                positions=kept_positions(reading.num_queries),
            )
        is_whole = bool(gradient) or self._sites[site].is_cross or reading.num_queries >= reading.num_keys
        self._observer(site, reading, Pass(gradient, is_whole, self._sites[site].module.training))
        self._seen.add(site)
        self._reasons.pop(site, None)

    def begin(self, site: str) -> None:
        """The forward of a site begins, while armed."""
        if site in self._sites:
            self._forwards.note(site)

    def _query_mask(self, reading: AttentionInputs) -> Tensor | None:
        """Layers are given the same mask: what it says of padding is asked once."""
        mask = reading.attn_mask
        if mask is None or reading.key_padding is not None or not reading.keeps_its_masks:
            return self_attention_query_mask(reading)
        identity = Identity(mask)
        if identity not in self._query_masks:
            if len(self._query_masks) == _MOST_MASKS:  # it keeps them alive, and may be armed for a whole training
                del self._query_masks[next(iter(self._query_masks))]
            self._query_masks[identity] = self_attention_query_mask(reading)
        return self._query_masks[identity]

    def fail(self, site: str, error: Exception) -> None:
        """Give a site up after an error: mark it and warn once."""
        if site in self._failed:
            return
        self._failed.add(site)
        self._reasons[site] = f"watching failed with {type(error).__name__}: {error}"
        warn(f"{site!r} is no longer watched, training goes on: {type(error).__name__}: {error}")


def _why_not(inputs: AttentionInputs) -> str:
    for tensor in (inputs.query, inputs.key):
        if tensor.is_nested:
            return "nested tensors are not observed; use a padded batch"
        if tensor.device.type == "meta":
            return "tensors on the meta device have no values"
    return ""
