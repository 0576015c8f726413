"""Where a model computes attention, found by reading its classes, before any forward."""

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import nn

SDPA = torch.nn.functional.scaled_dot_product_attention

# Names that torch's and other wrappers put into module paths; a user does not write them.
_WRAPPER_NAMES = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.|$)")
_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_CROSS = re.compile(r"cross|encoder_attn|encdec|multihead_attn", re.IGNORECASE)
# What transformers' models and layers call their key-value cache, in one version or another.
CACHES = ("past_key_values", "cache", "layer_past")
# How far calls of helper functions are followed from a module's forward.
_CALL_DEPTH = 3


class SiteKind(Enum):
    """How the attention of a site can be read."""

    INTERFACE = "transformers' attention interface"
    FUNCTIONAL = "torch.nn.functional.scaled_dot_product_attention"
    MULTIHEAD = "torch.nn.MultiheadAttention"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Site:
    """One module that computes attention.

    Attributes:
        name: module path in the model, without wrappers.
        module: the module itself.
        kind: how it is read.
        is_cross: queries and keys are different tokens (as far as names and attributes tell).
        reason: why it can't be read; empty where it can.
        bindings: (namespace, name) pairs through which its code calls scaled_dot_product_attention directly.
    """

    name: str
    module: nn.Module
    kind: SiteKind
    is_cross: bool = False
    reason: str = ""
    bindings: tuple[tuple[dict, str], ...] = field(default=(), repr=False)


def find_sites(model: nn.Module) -> list[Site]:
    """All attention sites of a model in module order, the unreadable ones included."""
    sites: list[Site] = []
    read_code = functools.cache(_read_code)  # once for each class
    around: list[tuple[str, nn.Module]] = []  # the modules with a config in which the module lies, innermost last
    for path, module in model.named_modules():
        around = [(prefix, other) for prefix, other in around if path.startswith(prefix)]
        if hasattr(module, "config"):
            around.append((f"{path}." if path else "", module))
        site = _site_of(site_name(path, module), module, [other for _, other in around], read_code)
        if site is not None:
            sites.append(site)
    return [site for site in sites if site.kind is not SiteKind.UNREADABLE or not _has_relative(site, sites)]


def site_name(path: str, module: nn.Module) -> str:
    """What a module at this path of the model is called: the path without wrappers, for the model itself its class."""
    return _WRAPPER_NAMES.sub("", path).lstrip(".") or type(module).__name__


def _site_of(name: str, module: nn.Module, models: list[nn.Module], read_code: Callable) -> Site | None:
    # The part of BERT's attention that computes it is called "self" in cross-attention too.
    named = f"{name.removesuffix('.self').rpartition('.')[2]} {type(module).__name__}"
    is_cross = bool(getattr(module, "is_cross_attention", False) or _CROSS.search(named))
    if isinstance(module, nn.MultiheadAttention):
        return Site(name, module, SiteKind.MULTIHEAD, is_cross)
    if type(module).__module__.startswith("torch.nn."):
        return None
    names, bindings = read_code(type(module))
    if "ALL_ATTENTION_FUNCTIONS" in names:
        return Site(name, module, SiteKind.INTERFACE, is_cross)
    if "scaled_dot_product_attention" in names or bindings:
        return Site(name, module, SiteKind.FUNCTIONAL, is_cross, bindings=tuple(bindings))
    if _LOOKS_LIKE_ATTENTION.search(type(module).__name__) and any(True for _ in module.parameters()):
        return Site(name, module, SiteKind.UNREADABLE, is_cross, reason=_why_unreadable(names, models))
    return None


def _why_unreadable(names: set[str], models: list[nn.Module]) -> str:
    for name, package in (("flash_attn", "flash-attn"), ("memory_efficient_attention", "xformers")):
        if any(name in used for used in names):
            return f"calls {package} directly; use torch's scaled_dot_product_attention to have it observed"
    if any(map(_is_eager_by_choice, models)):
        return "computes eager attention by hand; set attn_implementation='sdpa' to have it observed"
    return (
        "computes attention without torch's scaled_dot_product_attention, torch.nn.MultiheadAttention or "
        "transformers' attention interface; call one of them to have it observed"
    )


def _is_eager_by_choice(model: nn.Module) -> bool:
    """Whether it is a transformers model whose attention could be sdpa."""
    return getattr(model.config, "_attn_implementation", "") == "eager" and getattr(model, "_supports_sdpa", False)


def _has_relative(site: Site, sites: list[Site]) -> bool:
    """Another site lies inside this module (it is a wrapper) or around it (it is a part)."""
    return any(
        other is not site
        and (
            other.name.startswith(f"{site.name}.")
            or (other.kind is not SiteKind.UNREADABLE and site.name.startswith(f"{other.name}."))
        )
        for other in sites
    )


def _read_code(module_class: type) -> tuple[set[str], list[tuple[dict, str]]]:
    """Names used by the code that `forward` reaches, and where it bound scaled_dot_product_attention to a name."""
    names: set[str] = set()
    bindings: list[tuple[dict, str]] = []
    for function in _reachable(module_class):
        used = set(_names_in(function.__code__))
        names |= used
        namespace = function.__globals__
        bindings += [(namespace, name) for name in sorted(used) if _is_sdpa(namespace.get(name))]
    return names, bindings


def names_in_forward(module_class: type) -> set[str]:
    """Names of attributes and globals that the code of a class's own `forward` uses."""
    return set(_names_in(inspect.unwrap(module_class.forward).__code__))


def locals_of_forward(module_class: type) -> set[str]:
    """Names of arguments and variables of a class's own `forward`."""
    return set(inspect.unwrap(module_class.forward).__code__.co_varnames)


def _is_sdpa(value: object) -> bool:
    """Also where a capture has wrapped it already."""
    return value is SDPA or (isinstance(value, types.FunctionType) and inspect.unwrap(value) is SDPA)


def _reachable(module_class: type) -> Iterator[types.FunctionType]:
    """`forward`, the methods and the helper functions that it calls, directly or through each other."""
    pending: list[tuple[Callable, int]] = [(module_class.forward, 0)]
    seen = set()
    while pending:
        function, depth = pending.pop()
        function = inspect.unwrap(function)
        if not isinstance(function, types.FunctionType) or function in seen or _belongs_to_torch(function):
            continue
        seen.add(function)
        yield function
        if depth == _CALL_DEPTH:
            continue
        names = set(_names_in(function.__code__))
        # Which base `super()` means is known only when it runs.
        classes = module_class.__mro__ if "super" in names else (module_class,)
        for name in names:
            methods = [inspect.getattr_static(base, name, None) for base in classes]
            functions = [getattr(method, "__func__", method) for method in methods]
            for called in (*functions, function.__globals__.get(name)):
                if isinstance(called, types.FunctionType):
                    pending.append((called, depth + 1))


def _belongs_to_torch(function: types.FunctionType) -> bool:
    return function.__module__ is not None and function.__module__.split(".")[0] == "torch"


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
