"""Sites of which no call came: why, as far as their forwards tell."""

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from attnwatch.capture.delivery import in_backward
from attnwatch.capture.looking import compiles_anything
from attnwatch.capture.pruned import kept_heads
from attnwatch.capture.sites import Site, SiteKind
from attnwatch.utils.hooks import put

# What models call the switch of their fused attention.
_SWITCH = re.compile(r"fused|flash|sdpa|fast|efficient", re.IGNORECASE)
_CALLED = {
    SiteKind.INTERFACE: "transformers' attention interface",
    SiteKind.FUNCTIONAL: "scaled_dot_product_attention",
    SiteKind.MULTIHEAD: "scaled_dot_product_attention",
}
_BEFORE_ANY_STEP = (
    "not called in a step that was observed: there was none yet; put forward and backward inside "
    "`with recorder.step(global_step):`"
)
_NOT_RUN = (
    "not called in a step that was observed; a compiled model is seen if it is watched from before the first "
    "forward of any that looks like it (torch._dynamo.reset() forgets them), and calls count in the thread that has "
    "entered the step"
)
_NOT_RUN_BESIDE_OTHERS = (
    "not called in a step that was observed: its forward did not run, while those of other sites did"
)
_NO_HEADS = "all of its heads were removed, so that it has no attention"


class Forwards:
    """Which sites' forwards run, and how often each within the forward of a module around it.

    The latter is seen in the first step that is looked at, by hooks that are there as long; not in a process that
    compiles, where a hook that comes or goes would compile models once more.

    Args:
        model: around the sites.
        sites: their modules by name.
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
        """A site that a call has shown."""
        self._sites[name] = module

    def note(self, name: str) -> None:
        """The forward of this site has begun."""
        self._ran.add(name)

    def calls_per_forward(self, name: str) -> int:
        """How often a site's forward ran within one of a module around it."""
        return max(self._most[name], 1)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """While it is open, forwards are counted, unless some were before."""
        self._has_begun = True
        if self._counts or compiles_anything():
            yield
            return
        self._thread = threading.get_ident()
        with contextlib.ExitStack() as hooks:
            for name, module in self._sites.items():
                begun = module.register_forward_pre_hook(self._noter(name))
                hooks.callback(put(module, handles=[begun, module.register_forward_hook(self._counter(name))]))
            for module, inside in self._around():
                self._count_inside(module, inside, hooks)
            yield

    def why_silent(self, site: Site) -> str:
        """Why no call of this site came."""
        if _has_no_heads(site.module):
            return _NO_HEADS
        if site.name in self._ran:
            return _why_not_called(site)
        if not self._has_begun:
            return _BEFORE_ANY_STEP
        return _NOT_RUN_BESIDE_OTHERS if self._ran else _NOT_RUN

    def _noter(self, name: str):
        def note(module: nn.Module, args: tuple) -> None:
            if self._is_counted_now():
                self.note(name)

        return note

    def _counter(self, name: str):
        def count(module: nn.Module, args: tuple, output: object) -> None:
            if self._is_counted_now():  # not one that raised, and may be tried again
                self._counts[name] += 1

        return count

    def _is_counted_now(self) -> bool:
        if torch.compiler.is_compiling() or in_backward():
            return False
        return self._thread == threading.get_ident()

    def _around(self) -> Iterator[tuple[nn.Module, list[str]]]:
        names = {id(module): name for name, module in self._sites.items()}
        for module in self._model.modules():
            inside = [names[id(part)] for part in module.modules() if part is not module and id(part) in names]
            if inside:
                yield module, inside

    def _count_inside(self, module: nn.Module, inside: list[str], hooks: contextlib.ExitStack) -> None:
        before: Counter[str] = Counter()

        def enter(module: nn.Module, args: tuple) -> None:
            if self._is_counted_now():
                before.update({name: self._counts[name] - before[name] for name in inside})

        def leave(module: nn.Module, args: tuple, output: object) -> None:
            if self._is_counted_now():
                self._most |= Counter({name: self._counts[name] - before[name] for name in inside})

        handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        hooks.callback(put(module, handles=handles))


def _has_no_heads(module: nn.Module) -> bool:
    kept = kept_heads(module)
    return kept is not None and not kept.numel()


def _why_not_called(site: Site) -> str:
    ran = f"its forward ran without calling {_CALLED[site.kind]}"
    if site.kind is SiteKind.MULTIHEAD and not site.module.training:
        return (
            f"{ran}: PyTorch's inference fast path computed it, as in eval mode without gradients; train it, or call "
            "torch.backends.mha.set_fastpath_enabled(False)"
        )
    switches = [name for name, value in vars(site.module).items() if value is False and _SWITCH.search(name)]
    how = " or ".join(f"{name}=True" for name in switches) or "a flag of the model, or its newer version"
    return f"{ran}: it computes attention otherwise now; switch its fused attention on ({how})"
