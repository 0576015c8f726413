"""Sees the attention calls of one model."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from fnmatch import fnmatch

from torch import Tensor, nn

from attnwatch.capture.delivery import Reading, register, unregister
from attnwatch.capture.functional import forget_entered, patched_functional
from attnwatch.capture.interface import patched_interface
from attnwatch.capture.padding import self_attention_query_mask
from attnwatch.capture.passes import Pass
from attnwatch.capture.positions import kept_positions
from attnwatch.capture.silent import Forwards
from attnwatch.capture.sites import Site, SiteKind, find_sites
from attnwatch.errors import ConfigurationError, NoAttentionError
from attnwatch.messages import warn
from attnwatch.metrics import AttentionInputs, Identity
from attnwatch.versions import warn_if_untested

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

    Attributes:
        armed: whether calls reach the observer.
        num_calls: that came while armed.

    Raises:
        NoAttentionError: the model has no attention, or none that can be read.
        ConfigurationError: a pattern matches no site.
    """

    def __init__(self, model: nn.Module, observer: Observer, *, sites: Sequence[str] | None = None):
        self.armed = False
        self._observer = observer
        self._model = model
        self._found = find_sites(model)
        self._sites = {site.name: site for site in _selected(self._found, sites, type(model).__name__)}
        self._reasons = {name: site.reason for name, site in self._sites.items() if site.reason}
        self._seen: set[str] = set()
        self.num_calls = 0
        self._failed: set[str] = set()
        self._forwards = Forwards(model, {site.name: site.module for site in self._readable})
        self._patches = contextlib.ExitStack()
        self._query_masks: dict[Identity, Tensor | None] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be read, in module order."""
        return tuple(site.name for site in self._readable)

    @property
    def _readable(self) -> list[Site]:
        return [site for site in self._sites.values() if site.kind is not SiteKind.UNREADABLE]

    def module(self, site: str) -> nn.Module:
        return self._sites[site].module

    def coverage(self) -> dict[str, str]:
        """For every site `"observed"`, with a remark where it is called several times, or the reason why it is not."""
        return {name: self._reasons.get(name) or self._said_of(name) for name in self._sites}

    def silent(self) -> dict[str, str]:
        """Sites whose forward ran while forwards were counted, though no call came, and why; those that train only."""
        ran = self._forwards.ran - self._seen - self._reasons.keys()
        return {name: self._said_of(name) for name, site in self._sites.items() if name in ran and site.module.training}

    def _said_of(self, name: str) -> str:
        if name not in self._seen:
            return self._forwards.why_silent(self._sites[name])
        calls = self._forwards.calls_per_forward(name)
        if calls == 1:
            return OBSERVED
        return f"{OBSERVED}; it runs {calls} times a forward with the same weights, and statistics are over all calls"

    def attach(self) -> None:
        """Start to see calls; `detach` restores everything."""
        warn_if_untested("torch", self._model)
        with contextlib.ExitStack() as patches:
            for site in self._readable:
                register(site.module, self, site.name)
                patches.callback(unregister, site.module, self)
            interface = [site.module for site in self._readable if site.kind is SiteKind.INTERFACE]
            if interface:
                warn_if_untested("transformers", self._model)
                patches.enter_context(patched_interface(interface))
            functional = [site for site in self._readable if site.kind is not SiteKind.INTERFACE]
            if functional:
                others = [site for site in self._found if site not in functional]
                patches.enter_context(patched_functional(functional, others))
            self._patches = patches.pop_all()

    def detach(self) -> None:
        """Put everything back as it was. May be called twice."""
        self.armed = False
        self._patches.close()

    @contextlib.contextmanager
    def arm(self, *, counts_forwards: bool = False):
        """While it is open, calls reach the observer.

        Args:
            counts_forwards: look at which forwards run, once, so that the coverage can tell why no call came.
        """
        forget_entered()
        self.armed = True
        try:
            with self._forwards.counted() if counts_forwards else contextlib.nullcontext():
                yield
        finally:
            self.armed = False
            self._query_masks.clear()

    def receive(self, site: str, reading: Reading, has_gradient: bool) -> None:
        """One call of a site, while armed."""
        self.num_calls += 1
        if site in self._failed:
            return
        reason = reading if isinstance(reading, str) else _why_not(reading)
        if reason:
            if has_gradient or site not in self._seen:  # else its training is observed, and only this call is not
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
        is_whole = has_gradient or self._sites[site].is_cross or reading.num_queries >= reading.num_keys
        self._observer(site, reading, Pass(has_gradient, is_whole, self._sites[site].module.training))
        self._seen.add(site)
        self._reasons.pop(site, None)

    def begin(self, site: str) -> None:
        """The forward of a site begins, while armed."""
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


def _selected(found: list[Site], patterns: Sequence[str] | None, model_name: str) -> list[Site]:
    if not found:
        raise NoAttentionError(
            f"`model` ({model_name}) has no attention: no module calls scaled_dot_product_attention, "
            "torch.nn.MultiheadAttention or transformers' attention interface."
        )
    if patterns is not None:
        names = [site.name for site in found]
        for pattern in patterns:
            if not any(fnmatch(name, pattern) for name in names):
                raise ConfigurationError(f"`sites`: {pattern!r} matches none of the model's sites: {', '.join(names)}.")
        found = [site for site in found if any(fnmatch(site.name, pattern) for pattern in patterns)]
    if all(site.kind is SiteKind.UNREADABLE for site in found):
        listed = "; ".join(f"{site.name}: {site.reason}" for site in found[:3])
        raise NoAttentionError(f"`model` ({model_name}) has no attention that can be read. {listed}.")
    return found
