"""Base classes of the kinds of attention calls."""

import contextlib
import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture import call_owners, function_mode
from attnwatch.capture.call_owners import HANDLED, Args, Enter, Entry, Kwargs, enter_forward, enter_unwatched, owner_of
from attnwatch.capture.code_names import CodeNames
from attnwatch.capture.delivery import CallInputs, deliver
from attnwatch.capture.patching import StandIn, replace, shared_patch
from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry, named_errors
from attnwatch.utils.messages import warn

if TYPE_CHECKING:
    from attnwatch.capture.capture import Capture
    from attnwatch.capture.sites import Site


class AttentionCall(Plugin):
    """Base class of the ways in which modules compute attention. For functions, use `FunctionCall` instead.

    Attributes:
        name: see `Plugin`.
        title: name of the function or class in messages, such as "torch.nn.MultiheadAttention".
        enter: forward pre-hook of a site. The default keeps function calls of the site from being attributed to a
            module around it.
    """

    registry: ClassVar[Registry["AttentionCall"]] = Registry(
        "attention call", "attnwatch.capture.calls", as_instances=True
    )
    enter: Enter = staticmethod(enter_unwatched)

    @property
    def title(self) -> str:
        raise NotImplementedError

    def recognises(self, module: nn.Module, code: CodeNames) -> bool:
        """Return whether a module computes attention in this way.

        Args:
            module: any module of a model.
            code: names that its forward uses; empty for modules of `torch.nn`.
        """
        raise NotImplementedError

    def watched(self, sites: "Sequence[Site]") -> contextlib.AbstractContextManager[None]:
        """Return a context in which calls of these sites are delivered (`attnwatch.capture.deliver`) and passed on.

        It must restore everything, even after an exception. Captures of several models may be open at once and close
        in any order; `attnwatch.capture.shared_patch` takes care of that.
        """
        raise NotImplementedError

    def why_unreadable(self, code: CodeNames) -> str:
        """Return the reason why attention like these calls can't be read; empty if this code is not like them."""
        return ""

    def why_silent(self, site: "Site") -> str:
        """Return the reason why a site made no call although its forward ran; empty if none is known."""
        return ""

    @classmethod
    def check(cls, plugin: Any) -> None:
        for name in ("title", "recognises", "watched"):
            if getattr(cls, name) is getattr(AttentionCall, name):
                raise ConfigurationError(f"{cls.registry.describe(plugin)} must define `{name}`.")


class FunctionCall(AttentionCall):
    """Base class of attention functions that modules look up by name, in the function's package or their own.

    Attributes:
        paths: dotted paths of the function, as in `("flash_attn.flash_attn_func",)`. The first path determines its
            name.
        unobserved: functions that compute the same but can't be observed.

    Example:
        >>> import attnwatch
        >>> from attnwatch.attention import AttentionInputs
        >>> class MemoryEfficient(FunctionCall):
        ...     name = "memory_efficient"
        ...     paths = ("xformers.ops.memory_efficient_attention",)
        ...
        ...     def read(self, query, key, value, attn_bias=None, p=0.0, scale=None):
        ...         if attn_bias is not None:
        ...             return "its attn_bias is not read"
        ...         return AttentionInputs(query.transpose(1, 2), key.transpose(1, 2), scale=scale)
        >>> plugin = attnwatch.register(MemoryEfficient)
        >>> attnwatch.unregister(MemoryEfficient)
    """

    paths: tuple[str, ...]
    unobserved: tuple[object, ...] = ()
    enter: Enter = staticmethod(enter_forward)

    def read(self, *args: Any, **kwargs: Any) -> CallInputs:
        """Return the inputs of a call, or the reason why they can't be read.

        Overrides declare the function's parameters and receive its arguments unchanged. The call is not affected.
        """
        raise NotImplementedError

    def compute(self, original: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        """Return the result of the function."""
        return original(*args, **kwargs)

    @property
    def title(self) -> str:
        """Name of the function."""
        return self.paths[0].rpartition(".")[2]

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function itself; None while its package is not imported."""
        place, _, name = self.paths[0].rpartition(".")
        found = getattr(sys.modules.get(place), name, None)
        return found.__wrapped__ if isinstance(found, StandIn) else found

    def recognises(self, module: nn.Module, code: CodeNames) -> bool:
        """Return whether the code names the function, or holds it under another name.

        Names of packages that are not installed are ignored, unless a user registered the call.
        """
        package = self.paths[0].partition(".")[0]
        if self.registry.is_built_in(self) and package not in sys.modules and find_spec(package) is None:
            return False
        return self.title in code.names | code.texts or code.refers_to(self.function)

    def why_silent(self, site: "Site") -> str:
        """See `AttentionCall.why_silent`."""
        reason = (
            f"its forward holds {self.title} itself, whose calls can't be seen; call it by name to have it observed"
        )
        return reason if site.code.holds(self.function) else ""

    @contextlib.contextmanager
    def watched(self, sites: "Sequence[Site]") -> Iterator[None]:
        """See `AttentionCall.watched`. Without sites, the function is patched in its own package."""
        function = self._imported() if sites else self.function
        with contextlib.ExitStack() as patches:
            if function is not None:
                wrap = functools.partial(self._stand_in, function)
                for namespace, name in self._places(function, sites):
                    patch = functools.partial(replace, namespace, name, wrap)
                    patches.enter_context(shared_patch((id(namespace), name), patch))
            yield

    def discovering(self, model: nn.Module, finder: "Capture") -> contextlib.AbstractContextManager[None]:
        """Return a context in which calls of this thread that bypass all patches are reported to `finder`."""
        return contextlib.nullcontext()

    @classmethod
    def check(cls, plugin: Any) -> None:
        paths = getattr(plugin, "paths", None)
        if not (isinstance(paths, tuple) and paths and all("." in str(path) for path in paths)):
            raise ConfigurationError(
                f"{cls.registry.describe(plugin)} must have `paths`, a tuple of dotted paths such as "
                f"('package.function',); got {paths!r}."
            )
        if cls.read is FunctionCall.read:
            raise ConfigurationError(f"{cls.registry.describe(plugin)} must define `read`.")
        super().check(plugin)

    def _imported(self) -> Callable[..., Any] | None:
        """Return the function after importing it, because a forward may import it later than it is patched."""
        try:
            importlib.import_module(self.paths[0].rpartition(".")[0])
        except Exception as error:
            warn(f"calls of {self.paths[0]} are not observed, its import failed: {type(error).__name__}: {error}")
        return self.function

    def _places(self, function: object, sites: "Sequence[Site]") -> Iterator[tuple[dict[str, Any], str]]:
        """Yield namespaces and names by which the function is looked up."""
        for path in self.paths:
            module, _, name = path.rpartition(".")
            namespace = getattr(sys.modules.get(module), "__dict__", {})
            if name in namespace:
                yield namespace, name
        for site in sites:
            yield from site.code.bindings(function)

    def _stand_in(self, function: Callable[..., Any], original: Callable[..., Any]) -> StandIn:
        def watched(*args: Any, **kwargs: Any) -> Any:
            entry = owner_of(self, by_name=True)
            if entry is not None and entry.number is not None:
                deliver(entry.number, self.read_call, entry, args, kwargs)
            elif not function_mode.sees(function):
                return self.compute(original, args, kwargs)
            call_owners.enter(HANDLED)
            try:
                return self.compute(original, args, kwargs)
            finally:
                call_owners.leave(None)

        return StandIn(function, watched)

    def read_call(self, entry: Entry, args: Args, kwargs: Kwargs) -> CallInputs:
        """Return the result of `read` for a call in the forward of `entry`.

        Raises:
            ConfigurationError: `read` raises, or returns something invalid; in compiled code, its own error is raised.
        """
        read = self._read_traced if torch.compiler.is_compiling() else self._read_checked
        inputs = read(*args, **kwargs)
        if isinstance(inputs, str) or (entry.same_tokens and not entry.attends_to_context(inputs.key.shape[-2])):
            return inputs
        return dataclasses.replace(inputs, has_positions=False)

    def _read_traced(self, *args: Any, **kwargs: Any) -> CallInputs:
        """Return the result of `read` in compiled code, where an error would reach the model."""
        try:
            inputs = self.read(*args, **kwargs)
        except Exception:
            inputs = None
        if isinstance(inputs, AttentionInputs | str):
            return inputs
        return f"reading {self.title} failed in compiled code; run a step without torch.compile to see the error"

    def _read_checked(self, *args: Any, **kwargs: Any) -> CallInputs:
        with named_errors(self):
            inputs = self.read(*args, **kwargs)
        problem = _problem_of(inputs)
        if problem:
            raise ConfigurationError(f"{self.registry.describe(self)} {problem}")
        return inputs


def _problem_of(inputs: object) -> str:
    """Return the reason why an object is neither the inputs of a call nor a reason; empty if it is."""
    if not isinstance(inputs, AttentionInputs):
        is_reason = isinstance(inputs, str)
        return "" if is_reason else f"must read AttentionInputs or the reason why not; got {type(inputs).__name__}"
    if inputs.query.is_nested or inputs.key.is_nested:
        return ""
    query, key = list(inputs.query.shape), list(inputs.key.shape)
    if len(query) == len(key) == 4 and query[3] == key[3] and not (key[1] and query[1] % key[1]):
        return ""
    return (
        f"read query {query} and key {key}; expected [batch, heads, tokens, head_dim] of both, with one head_dim and a "
        "number of key heads that divides the number of query heads"
    )
