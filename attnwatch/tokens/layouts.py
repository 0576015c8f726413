"""Declaration of the arguments of a layer that have a token axis, for routing."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.tokens.axes import take
from attnwatch.utils.interception import original_class

Router = Callable[[Tensor, Tensor, nn.Module, Mapping[str, Any]], Tensor]
"""Function called with an argument, the kept tokens [batch, kept], the layer, and all its arguments by name."""


@dataclass(frozen=True)
class TokenLayout:
    """Declaration of the arguments of a layer that have a token axis.

    The computation in the layer must not depend on the distance of two tokens in the tensor: positions must be an
    argument, or already be part of the states.

    Args:
        states: name of the argument with the hidden states; the layer returns the new ones, alone or first in a tuple.
        routed: rule for cutting each argument with a token axis to the kept tokens: a pattern with a word for each
            axis, see below; a tuple of patterns if the number of axes varies; or a function called with the argument,
            the kept tokens [batch, kept], the layer, and all its arguments by name.
        whole: names of the arguments without a token axis.
        caches: names of key-value caches; if one is passed, nothing is dropped.
        batch_first: True if hidden states are [batch, tokens, features], False if [tokens, batch, features]; or a
            function of the layer that returns this.

    Axes are `batch`, `tokens` and any other words. An argument that all sequences share has no batch axis, but needs
    one after the choice, where the layer's code expects it: pass a function. Tuples of tensors are routed one by one.

    Raises:
        ConfigurationError: a pattern lacks the axis `batch` or `tokens`.

    Example:
        >>> import torch
        >>> layout = TokenLayout("x", routed={"mask": "batch heads tokens tokens"})
        >>> mask, kept = torch.ones(2, 4, 10, 10), torch.tensor([[0, 3, 5], [0, 2, 9]])
        >>> layout.route("mask", mask, kept, nn.Identity(), {}).shape
        torch.Size([2, 4, 3, 3])
    """

    states: str
    routed: Mapping[str, str | tuple[str, ...] | Router] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    batch_first: bool | Callable[[nn.Module], bool] = True

    def __post_init__(self) -> None:
        for name, how in self.routed.items():
            patterns = how if isinstance(how, tuple) else (how,)
            if callable(how) or patterns == ("boundaries",):
                continue
            words = [pattern.split() if isinstance(pattern, str) else [] for pattern in patterns]
            if not all("batch" in each for each in words) or not any("tokens" in each for each in words):
                raise ConfigurationError(
                    f"`routed`: the axes of {name!r} must be words that include `batch` and `tokens`, got {how!r}; an "
                    "argument that all sequences share needs a function (see docs/explanation/tokens.md)."
                )

    def check_arguments(self, layer_class: type[nn.Module]) -> None:
        """Raise a `ConfigurationError` if the forward of a layer class lacks a declared argument with a token axis."""
        names = inspect.signature(layer_class.forward).parameters
        for name in (self.states, *self.routed):
            if name not in names:
                raise ConfigurationError(f"`tokens`: the forward of {layer_class.__name__} has no argument {name!r}.")

    def is_batch_first(self, layer: nn.Module) -> bool:
        """Return whether the layer's hidden states are [batch, tokens, features]."""
        return self.batch_first(layer) if callable(self.batch_first) else self.batch_first

    def knows(self, name: str) -> bool:
        """Return whether the layout declares an argument with this name."""
        return name == self.states or name in self.routed or name in self.whole or name in self.caches

    def why_not(
        self, arguments: Mapping[str, Any], num_tokens: int, ignored: Callable[[str], bool] = lambda name: False
    ) -> str:
        """Return the reason why the arguments of a call can't be routed; empty if they can.

        Args:
            arguments: arguments by name.
            num_tokens: number of tokens in the hidden states.
            ignored: function that returns whether the layers never use an argument of this name, so that it need not
                be cut.
        """
        for name, value in arguments.items():
            if value is None or name == self.states:
                continue
            if name in self.routed:
                reason = self._why_not_routed(name, value, num_tokens)
                if reason:
                    return reason
            elif not self.knows(name) and _has_tensor(value) and not ignored(name):
                return (
                    f"the layers receive {name!r}, a tensor that is not in the token layout; remove it from the batch, "
                    "or name it in `routed` or `whole` of a TokenLayout (see attnwatch.ModelFamily)"
                )
        return ""

    def _why_not_routed(self, name: str, value: Any, num_tokens: int) -> str:
        if isinstance(value, tuple | list):
            return next(filter(None, (self._why_not_routed(name, part, num_tokens) for part in value)), "")
        if value is None:
            return ""
        if not isinstance(value, Tensor):
            return f"{name!r} is a {type(value).__name__}, which can't be cut to the kept tokens"
        how = self.routed[name]
        if callable(how):
            return ""
        axes = _axes(how, value.ndim)
        if axes is None:
            return f"{name!r} has the shape {list(value.shape)}, which is not in the token layout"
        lengths = [length for axis, length in zip(axes.split(), value.shape, strict=True) if axis == "tokens"]
        if any(length not in (1, num_tokens) for length in lengths):
            return f"{name!r} is for {max(lengths)} tokens, but the layers receive {num_tokens}"
        return ""

    def known(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the information about the tokens in the layer's arguments, see `choice.KNOWN`."""
        return {
            "layer_mask": arguments.get("attention_mask"),
            "layer_positions": arguments.get("position_ids"),
            "hidden": arguments.get("src_key_padding_mask"),
            "boundaries": arguments.get("cu_seq_lens_q"),
        }

    def route(self, name: str, value: Any, kept: Tensor, layer: nn.Module, arguments: Mapping[str, Any]) -> Any:
        """Return an argument cut to the kept tokens [batch, kept]."""
        if isinstance(value, tuple | list):
            return type(value)(self.route(name, part, kept, layer, arguments) for part in value)
        if value is None:
            return None
        how = self.routed[name]
        if not callable(how):
            axes = _axes(how, value.ndim)
            assert axes is not None, "`why_not` rejects all others"
            return take(value, axes, kept)
        if torch.compiler.is_compiling():
            return how(value, kept, layer, arguments)
        described = f"`routed`: the function for {name!r} of {original_class(layer).__name__}"
        try:
            routed = how(value, kept, layer, arguments)
        except Exception as error:
            raise ConfigurationError(f"{described} failed with {type(error).__name__}: {error}") from error
        if not isinstance(routed, Tensor) or kept.shape[1] not in routed.shape:
            got = list(routed.shape) if isinstance(routed, Tensor) else type(routed).__name__
            raise ConfigurationError(
                f"{described} must return a tensor with an axis for the {kept.shape[1]} kept tokens, got {got}."
            )
        return routed


def _axes(patterns: str | tuple[str, ...], ndim: int) -> str | None:
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return next((axes for axes in patterns if len(axes.split()) == ndim), None)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor) and value.ndim > 0
