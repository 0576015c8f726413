"""Hooks that record which forwards ran, to explain silent sites, and which raised."""

import contextlib
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from attnwatch.capture.compilation import compiles_anything
from attnwatch.capture.forward_pass import in_backward
from attnwatch.capture.pruned import kept_heads
from attnwatch.capture.sites import Site
from attnwatch.utils.hooks import Remove, put

Undo = Callable[[], None]
Remember = Callable[[], Undo]
"""Function that returns a function to undo everything from this point on."""

# Names of switches for fused attention in models.
_SWITCH = re.compile(r"fused|flash|sdpa|fast|efficient", re.IGNORECASE)
_BEFORE_ANY_STEP = (
    "not called in an observed step: there was none yet; put forward and backward inside "
    "`with recorder.step(global_step):`"
)
_NOT_RUN = (
    "not called in an observed step; a compiled model must be watched before the first forward of any similar model "
    "(or after torch._dynamo.reset()), and only calls in the thread that entered the step count"
)
_NOT_RUN_BESIDE_OTHERS = "not called in an observed step: its forward did not run, although those of other sites did"
_NO_HEADS = "all of its heads were removed, so it has no attention"


class ForwardCounts:
    """Counter of the forwards of sites, in total and within each forward of a module around the site.

    The latter are counted in the first step, by temporary hooks, except in a process that compiles, where adding and
    removing hooks would recompile models.

    Args:
        model: model with these sites.
        sites: modules of the sites by name.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, nn.Module]):
        self._model, self._sites = model, dict(sites)
        self._counts: Counter[str] = Counter()
        self._most: Counter[str] = Counter()
        self._ran: set[str] = set()
        self._has_begun = False
        self._thread: int | None = None

    @property
    def ran(self) -> frozenset[str]:
        """Names of the sites that have heads and whose forward ran."""
        return frozenset(name for name in self._ran if not _has_no_heads(self._sites[name]))

    def add(self, name: str, module: nn.Module) -> None:
        """Count the forwards of a site discovered by its call."""
        self._sites[name] = module

    def note(self, name: str) -> None:
        """Record that the forward of this site has begun."""
        self._ran.add(name)

    def calls_per_forward(self, name: str) -> int:
        """Return the number of times a site's forward ran within one forward of a module around it."""
        return max(self._most[name], 1)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count forwards while the context is open, unless some were counted before."""
        self._has_begun = True
        if self._counts or compiles_anything():
            yield
            return
        self._thread = threading.get_ident()
        with contextlib.ExitStack() as hooks:
            for name, module in self._sites.items():
                hooks.callback(self._count(name, module))
            sites = set(self._sites.values())
            for module in self._model.modules():
                if any(part is not module and part in sites for part in module.modules()):
                    hooks.callback(self._count_within(module))
            yield

    def why_silent(self, site: Site) -> str:
        """Return the reason why this site made no call."""
        if _has_no_heads(site.module):
            return _NO_HEADS
        if site.name in self._ran:
            return _why_not_called(site)
        if not self._has_begun:
            return _BEFORE_ANY_STEP
        return _NOT_RUN_BESIDE_OTHERS if self._ran else _NOT_RUN

    def _count(self, name: str, module: nn.Module) -> Remove:
        """Count the started and completed forwards of a site separately, since one that raises may be retried."""

        def begin(module: nn.Module, args: object) -> None:
            if self._is_counted_now():
                self.note(name)

        def end(module: nn.Module, args: object, output: object) -> None:
            if self._is_counted_now():
                self._counts[name] += 1

        return _put_hooks(module, begin, end)

    def _count_within(self, module: nn.Module) -> Remove:
        """Compare the counts before and after each forward of a module around sites."""
        before: list[Counter[str]] = []

        def begin(module: nn.Module, args: object) -> None:
            if self._is_counted_now():
                before.append(self._counts.copy())

        def end(module: nn.Module, args: object, output: object) -> None:
            if before and self._is_counted_now():
                self._most |= self._counts - before.pop()

        return _put_hooks(module, begin, end)

    def _is_counted_now(self) -> bool:
        if torch.compiler.is_compiling() or in_backward():
            return False
        return self._thread == threading.get_ident()


def _put_hooks(module: nn.Module, begin: Callable[..., None], end: Callable[..., None]) -> Remove:
    return put(module, handles=[module.register_forward_pre_hook(begin), module.register_forward_hook(end)])


def _has_no_heads(module: nn.Module) -> bool:
    kept = kept_heads(module)
    return kept is not None and not kept.numel()


def _why_not_called(site: Site) -> str:
    reason = next(filter(None, (call.why_silent(site) for call in site.calls)), "")
    if reason:
        return reason
    switches = [name for name, value in vars(site.module).items() if value is False and _SWITCH.search(name)]
    how = " or ".join(f"{name}=True" for name in switches) or "a flag of the model, or its newer version"
    return (
        f"its forward ran without calling {' or '.join(call.title for call in site.calls)}: it computes attention "
        f"in another way; enable its fused attention ({how})"
    )


@contextlib.contextmanager
def failed_forwards_undone(model: nn.Module, is_armed: Callable[[], bool], remember: Remember) -> Iterator[None]:
    """Undo the effects of a forward of `model` that raises, so that a retried batch counts once.

    Does nothing in a process that compiles, where adding and removing hooks would recompile models.

    Args:
        model: model whose forwards are watched, but not those of its parts when called directly.
        is_armed: function that returns whether calls of this thread are currently received.
        remember: function called when a forward begins.
    """
    if compiles_anything():
        yield
        return
    begun: list[tuple[Undo, BaseException | None]] = []

    def is_seen() -> bool:
        return not torch.compiler.is_compiling() and is_armed() and not in_backward()

    def enter(module: nn.Module, args: object) -> None:
        if is_seen():
            begun.append((remember(), sys.exc_info()[1]))

    def leave(module: nn.Module, args: object, output: object) -> None:
        if begun and is_seen():
            undo, handled_before = begun.pop()  # a retry may run inside the handler of the first error
            if sys.exc_info()[1] is not handled_before:
                undo()

    handles = [
        model.register_forward_pre_hook(enter, prepend=True),
        model.register_forward_hook(leave, always_call=True),
    ]
    remove = put(model, handles=handles)
    try:
        yield
    finally:
        remove()
