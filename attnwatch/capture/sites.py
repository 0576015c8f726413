"""Modules of a model that compute attention, found by reading its classes before any forward."""

import functools
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attnwatch.capture.call_owners import Enter, enter_unwatched
from attnwatch.capture.calls.base import AttentionCall, FunctionCall
from attnwatch.capture.code_names import CodeNames, is_of_torch, names_in, read_class, read_values
from attnwatch.plugins import named_errors
from attnwatch.utils.forwards import forward_function

# Names that wrappers of torch and others add to module paths; users do not write them.
_WRAPPER_NAMES = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.|$)")
_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_CROSS = re.compile(r"cross|encoder_attn|encdec|multihead_attn", re.IGNORECASE)
# Names of the key-value cache in transformers' models and layers, across versions.
CACHES = ("past_key_values", "cache", "layer_past")
# Entries in the `__dict__` of every module, including its parts and hooks.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Code that uses one of these names computes the weights itself.
_BY_HAND = ("softmax", "log_softmax", "softmax_", "_softmax")
# Names in code that calls a package that no attention call reads.
_OTHER_PACKAGES = {"flash_attn": "flash-attn", "memory_efficient_attention": "xformers"}


@dataclass(frozen=True, eq=False)
class Site:
    """Module that computes attention.

    Attributes:
        name: module path in the model, without wrappers.
        module: the module itself.
        calls: kinds of attention calls that its forward may make; empty if it can't be read.
        is_cross: True if queries and keys are different tokens, judging by names and attributes.
        reason: reason why it can't be read; empty if it can.
        is_certain: True if `reason` follows from the code; otherwise calls may reveal more.
        code: names that its forward uses.
    """

    name: str
    module: nn.Module
    calls: tuple[AttentionCall, ...] = ()
    is_cross: bool = False
    reason: str = ""
    is_certain: bool = True
    code: CodeNames = field(default=CodeNames(), repr=False)

    @property
    def is_readable(self) -> bool:
        """True if its calls can be read, judging by the code."""
        return bool(self.calls)

    @property
    def calls_functions(self) -> bool:
        """True if it calls patched functions, whose calls its hooks attribute to it."""
        return any(isinstance(call, FunctionCall) for call in self.calls)

    @property
    def enter(self) -> Enter:
        """Forward pre-hook of the module."""
        return self.calls[0].enter if self.calls else enter_unwatched


def function_calls() -> list[FunctionCall]:
    """Return the registered function calls."""
    return [call for call in AttentionCall.registry.values() if isinstance(call, FunctionCall)]


def find_sites(model: nn.Module) -> list[Site]:
    """Return all attention sites of a model in module order, including unreadable ones."""
    return without_relatives(_found(model, _Reader()))


def find_with_expected(model: nn.Module) -> tuple[list[Site], list[Site]]:
    """Return the sites, and the modules that become sites if they call an attention function that they may reach."""
    reader = _Reader()
    sites = _found(model, reader)
    known = {site.module for site in sites}
    expected = []
    for path, module in model.named_modules():
        code = reader.values(module) if module not in known and _is_leaf(module) else CodeNames()
        calls = reader.calls(module, code, of_functions=True) if code.functions else ()
        if calls:
            expected.append(make_site(site_name(path, module), module, calls, code))
    return without_relatives(sites), expected


def make_site(name: str, module: nn.Module, calls: Iterable[AttentionCall], code: CodeNames) -> Site:
    """Return a site that makes these calls."""
    return Site(name, module, tuple(calls), _is_cross(name, module), code=code)


def without_relatives(sites: list[Site]) -> list[Site]:
    """Return the sites except unreadable modules that contain or are contained in another site."""
    return [site for site in sites if site.is_readable or not _has_relative(site, sites)]


class _Reader:
    """Reader that reads code once per class, or per modules with the same functions, and asks the attention calls."""

    def __init__(self) -> None:
        self.known = tuple(AttentionCall.registry.values())
        self._functions = [each for call in function_calls() for each in (call.function, *call.unobserved)]
        self.of_class: Any = functools.cache(read_class)
        self._values: dict[tuple[object, ...], CodeNames] = {}

    def values(self, module: nn.Module) -> CodeNames:
        """Return the names that a module reaches through its values."""
        if is_of_torch(module):
            return CodeNames()
        held = [value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
        key = (type(module), *filter(None, map(_key_of, held)))
        if key not in self._values:
            self._values[key] = read_values(module, self._functions)
        return self._values[key]

    def calls(self, module: nn.Module, code: CodeNames, *, of_functions: bool) -> tuple[AttentionCall, ...]:
        """Return the kinds of calls that recognise a module, either of functions or others."""
        asked = [call for call in self.known if isinstance(call, FunctionCall) == of_functions]
        return tuple(call for call in asked if _recognises(call, module, code))


def _recognises(call: AttentionCall, module: nn.Module, code: CodeNames) -> bool:
    with named_errors(call):
        return call.recognises(module, code)


def _key_of(value: object) -> object:
    """Return None for plain data, and the same key for objects of one class that do not hold functions."""
    if isinstance(value, str | bytes | int | float | complex | None | Tensor):
        return None
    is_object = hasattr(value, "__dict__") and not isinstance(value, type | functools.partial | types.FunctionType)
    if is_object and not any(callable(part) or isinstance(part, dict | list | tuple) for part in vars(value).values()):
        return type(value)
    return id(value)


def _is_leaf(module: nn.Module) -> bool:
    """Return whether all inner modules are torch's."""
    return not is_of_torch(module) and all(inner is module or is_of_torch(inner) for inner in module.modules())


def _found(model: nn.Module, reader: _Reader) -> list[Site]:
    sites: list[Site] = []
    around: list[tuple[str, nn.Module]] = []  # the enclosing modules with a config, innermost last
    for path, module in model.named_modules():
        around = [(prefix, other) for prefix, other in around if path.startswith(prefix)]
        if hasattr(module, "config"):
            around.append((f"{path}." if path else "", module))
        site = _site_of(site_name(path, module), module, [other for _, other in around], reader)
        if site is not None:
            sites.append(site)
    return sites


def site_name(path: str, module: nn.Module) -> str:
    """Return the path of a module in its model without wrappers; for the model itself, its class name."""
    return _WRAPPER_NAMES.sub("", path).lstrip(".") or type(module).__name__


def _site_of(name: str, module: nn.Module, models: list[nn.Module], reader: _Reader) -> Site | None:
    code = CodeNames() if is_of_torch(module) else reader.of_class(type(module))
    calls = reader.calls(module, code, of_functions=False)
    if calls:
        return make_site(name, module, calls[:1], code)
    if is_of_torch(module):
        return None
    calls = reader.calls(module, code, of_functions=True)
    if calls:
        return make_site(name, module, calls, code | reader.values(module))
    if not _LOOKS_LIKE_ATTENTION.search(type(module).__name__) or not any(True for _ in module.parameters()):
        return None
    held = reader.values(module)
    calls = reader.calls(module, held, of_functions=True)
    if calls:
        return make_site(name, module, calls, held)
    reason, is_certain = _why_unreadable(code | held, models, reader.known)
    return Site(name, module, (), _is_cross(name, module), reason, is_certain)


def _is_cross(name: str, module: nn.Module) -> bool:
    # BERT's attention core is named "self" in cross-attention too.
    named = f"{name.removesuffix('.self').rpartition('.')[2]} {type(module).__name__}"
    return bool(getattr(module, "is_cross_attention", False) or _CROSS.search(named))


def known_calls() -> str:
    """Return the titles of all attention calls, joined for a sentence."""
    *first, last = sorted(call.title for call in AttentionCall.registry.values())
    return f"{', '.join(first)} or {last}"


def _why_unreadable(code: CodeNames, models: list[nn.Module], calls: Iterable[AttentionCall]) -> tuple[str, bool]:
    """Return the reason why a module is unreadable, and whether it follows from the code."""
    reason = next(filter(None, (call.why_unreadable(code) for call in calls)), "")
    if reason:
        return reason, True
    for name, package in _OTHER_PACKAGES.items():
        if any(name in used for used in code.names):
            return f"calls {package} directly; use torch's scaled_dot_product_attention to have it observed", True
    if any(map(_is_eager_by_choice, models)):
        return "computes eager attention by hand; set attn_implementation='sdpa' to have it observed", True
    reason = f"computes attention without {known_calls()}; call one of them to have it observed"
    return reason, any(name in code.names for name in _BY_HAND)


def _is_eager_by_choice(model: nn.Module) -> bool:
    """Return whether this is a transformers model whose attention could be sdpa."""
    return getattr(model.config, "_attn_implementation", "") == "eager" and getattr(model, "_supports_sdpa", False)


def _has_relative(site: Site, sites: list[Site]) -> bool:
    """Return whether another site is inside this module (a wrapper) or around it (a part)."""
    return any(
        other is not site
        and (other.name.startswith(f"{site.name}.") or (other.is_readable and site.name.startswith(f"{other.name}.")))
        for other in sites
    )


def names_in_forward(module_class: type[nn.Module]) -> set[str]:
    """Return the names of attributes and globals that the code of a class's own `forward` uses; none without code."""
    forward = forward_function(module_class)
    return set() if forward is None else set(names_in(forward.__code__))


def locals_of_forward(module_class: type[nn.Module]) -> set[str]:
    """Return the names of arguments and variables of a class's own `forward`; none without code."""
    forward = forward_function(module_class)
    return set() if forward is None else set(forward.__code__.co_varnames)
