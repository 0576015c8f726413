"""Detection of unmodified models of the transformers library, which compute what their authors intended."""

from typing import Any

from torch import nn

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "attnwatch")
_ATTENTION = ("eager", "sdpa", "flash", "flex")


def is_as_it_comes(module: nn.Module) -> bool:
    """Return whether a transformers model is unmodified, with no modules, hooks or attention functions from elsewhere.

    Args:
        module: model; PEFT adapters may have been added to it.
    """
    attention = str(getattr(getattr(module, "config", None), "_attn_implementation", None) or "eager")
    is_of_transformers = type(module).__module__.startswith("transformers.models.")
    return is_of_transformers and attention.startswith(_ATTENTION) and all(map(_is_of_package, module.modules()))


def _is_of_package(module: nn.Module) -> bool:
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if "forward" in vars(module) and _package_of(module.forward) != "attnwatch":
        return False
    return all(_package_of(each) in _PACKAGES for each in (type(module), module.forward, *hooks))


def _package_of(function: Any) -> str:
    """Return the package in which a class, a function, or the class of another callable is defined."""
    return (getattr(getattr(function, "func", function), "__module__", None) or "").partition(".")[0]
