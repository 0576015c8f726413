"""Where a model computes attention, found by reading its classes, before any forward."""

import functools
import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from torch import Tensor, nn

from attnwatch.capture.reading import SDPA, Hidden, Reading, names_in, read_class, read_values

# Names that torch's and other wrappers put into module paths; a user does not write them.
_WRAPPER_NAMES = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.|$)")
_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_CROSS = re.compile(r"cross|encoder_attn|encdec|multihead_attn", re.IGNORECASE)
# What transformers' models and layers call their key-value cache, in one version or another.
CACHES = ("past_key_values", "cache", "layer_past")
# What every module has in its `__dict__`, its parts and its hooks among them.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Code that names one of these computes the weights itself.
_BY_HAND = ("softmax", "log_softmax", "softmax_", "_softmax")


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
        is_certain: `reason` follows from the code; else what is called says more.
        is_hidden: it calls scaled_dot_product_attention through a reference of its own, which can't be patched.
        bindings: (namespace, name) pairs through which its code calls scaled_dot_product_attention directly.
    """

    name: str
    module: nn.Module
    kind: SiteKind
    is_cross: bool = False
    reason: str = ""
    is_certain: bool = True
    is_hidden: bool = False
    bindings: tuple[tuple[dict, str], ...] = field(default=(), repr=False)


def find_sites(model: nn.Module) -> list[Site]:
    """All attention sites of a model in module order, the unreadable ones included."""
    return without_relatives(_found(model, _Code()))


class FoundSites(NamedTuple):
    """Sites of a model before any forward.

    Attributes:
        sites: as of `find_sites`.
        expected: modules whose code may reach scaled_dot_product_attention, and which are no sites unless they call it.
    """

    sites: list[Site]
    expected: list[Site]


def find_with_expected(model: nn.Module) -> FoundSites:
    """The sites, and modules that may turn out to be sites."""
    code = _Code()
    sites = _found(model, code)
    known = {site.module for site in sites}
    expected = [
        functional_site(site_name(path, module), module, code.of_values(module))
        for path, module in model.named_modules()
        if module not in known and _is_leaf(module) and any(code.of_values(module)[2:])
    ]
    return FoundSites(without_relatives(sites), expected)


def functional_site(name: str, module: nn.Module, hidden: Hidden | None = None) -> Site:
    """A site that calls scaled_dot_product_attention; without `hidden` nothing is known of the way."""
    bindings = () if hidden is None else hidden.bindings
    is_hidden = hidden is None or hidden.by_value
    return Site(name, module, SiteKind.FUNCTIONAL, _is_cross(name, module), is_hidden=is_hidden, bindings=bindings)


def is_of_torch(module: nn.Module) -> bool:
    """Whether its class is one of `torch.nn`, whose code is known."""
    return type(module).__module__.startswith("torch.nn.")


def without_relatives(sites: list[Site]) -> list[Site]:
    """Without unreadable modules that lie around a site, or inside of one."""
    return [site for site in sites if site.kind is not SiteKind.UNREADABLE or not _has_relative(site, sites)]


class _Code:
    """What code says of modules, read once for each class, or for modules that hold the same functions."""

    def __init__(self):
        self.of_class: Callable[[type], Reading] = functools.cache(read_class)
        self._of_values: dict[tuple, Hidden] = {}

    def of_values(self, module: nn.Module) -> Hidden:
        if is_of_torch(module):
            return Hidden(frozenset(), (), by_name=False, by_value=False)
        held = [value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
        key = (type(module), *filter(None, map(_key_of, held)))
        if key not in self._of_values:
            self._of_values[key] = read_values(module)
        return self._of_values[key]


def _key_of(value: object) -> object:
    """None for plain data; the same for objects of one class that hold no functions themselves."""
    if isinstance(value, str | bytes | int | float | complex | None | Tensor):
        return None
    is_object = hasattr(value, "__dict__") and not isinstance(value, type | functools.partial | types.FunctionType)
    if is_object and not any(callable(part) or isinstance(part, dict | list | tuple) for part in vars(value).values()):
        return type(value)
    return id(value)


def _is_leaf(module: nn.Module) -> bool:
    """Whether all modules in it are torch's."""
    return not is_of_torch(module) and all(inner is module or is_of_torch(inner) for inner in module.modules())


def _found(model: nn.Module, code: _Code) -> list[Site]:
    sites: list[Site] = []
    around: list[tuple[str, nn.Module]] = []  # the modules with a config in which the module lies, innermost last
    for path, module in model.named_modules():
        around = [(prefix, other) for prefix, other in around if path.startswith(prefix)]
        if hasattr(module, "config"):
            around.append((f"{path}." if path else "", module))
        site = _site_of(site_name(path, module), module, [other for _, other in around], code)
        if site is not None:
            sites.append(site)
    return sites


def site_name(path: str, module: nn.Module) -> str:
    """What a module at this path of the model is called: the path without wrappers, for the model itself its class."""
    return _WRAPPER_NAMES.sub("", path).lstrip(".") or type(module).__name__


def _site_of(name: str, module: nn.Module, models: list[nn.Module], code: _Code) -> Site | None:
    is_cross = _is_cross(name, module)
    if isinstance(module, nn.MultiheadAttention):
        return Site(name, module, SiteKind.MULTIHEAD, is_cross)
    if is_of_torch(module):
        return None
    names, bindings = code.of_class(type(module))
    if "ALL_ATTENTION_FUNCTIONS" in names:
        return Site(name, module, SiteKind.INTERFACE, is_cross)
    if SDPA.__name__ in names or bindings:
        return functional_site(name, module, code.of_values(module)._replace(bindings=bindings))
    if not (_LOOKS_LIKE_ATTENTION.search(type(module).__name__) and any(True for _ in module.parameters())):
        return None
    hidden = code.of_values(module)
    if hidden.by_name or hidden.by_value:
        return functional_site(name, module, hidden)
    reason, is_certain = _why_unreadable(names | hidden.names, models)
    return Site(name, module, SiteKind.UNREADABLE, is_cross, reason=reason, is_certain=is_certain)


def _is_cross(name: str, module: nn.Module) -> bool:
    # The part of BERT's attention that computes it is called "self" in cross-attention too.
    named = f"{name.removesuffix('.self').rpartition('.')[2]} {type(module).__name__}"
    return bool(getattr(module, "is_cross_attention", False) or _CROSS.search(named))


def _why_unreadable(names: frozenset[str], models: list[nn.Module]) -> tuple[str, bool]:
    """The reason, and whether it follows from the code."""
    for name, package in (("flash_attn", "flash-attn"), ("memory_efficient_attention", "xformers")):
        if any(name in used for used in names):
            return f"calls {package} directly; use torch's scaled_dot_product_attention to have it observed", True
    if any(map(_is_eager_by_choice, models)):
        return "computes eager attention by hand; set attn_implementation='sdpa' to have it observed", True
    reason = (
        "computes attention without torch's scaled_dot_product_attention, torch.nn.MultiheadAttention or "
        "transformers' attention interface; call one of them to have it observed"
    )
    return reason, any(name in names for name in _BY_HAND)


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


def names_in_forward(module_class: type) -> set[str]:
    """Names of attributes and globals that the code of a class's own `forward` uses."""
    return set(names_in(inspect.unwrap(module_class.forward).__code__))


def locals_of_forward(module_class: type) -> set[str]:
    """Names of arguments and variables of a class's own `forward`."""
    return set(inspect.unwrap(module_class.forward).__code__.co_varnames)
