"""What the layers of a stack are given: one declaration per kind of layer, from which the routing follows."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attnwatch.capture import CACHES
from attnwatch.errors import ConfigurationError
from attnwatch.tokens.axes import take
from attnwatch.tokens.interception import original_class

Router = Callable[[Tensor, Tensor, nn.Module, Mapping[str, Any]], Tensor]
"""Called with an argument, the kept tokens [batch, kept], the layer, and all its arguments by name."""


@dataclass(frozen=True)
class TokenLayout:
    """Which arguments of a layer have a token axis.

    ```python
    register_token_layout(Block, TokenLayout("x", routed={"mask": "batch heads tokens tokens"}))
    ```

    Args:
        states: name of the argument with the hidden states; the layer returns the new ones, alone or first in a tuple.
        routed: for the arguments with a token axis a word for each of their axes, see below; several where they come
            with different numbers of axes; or a function, called with the argument, the kept tokens [batch, kept], the
            layer, and all its arguments by name.
        whole: names of the arguments without a token axis.
        caches: names of key-value caches; where one is given, nothing is dropped.
        batch_first: hidden states are [batch, tokens, features], not [tokens, batch, features]; or a function of the
            layer that says so.

    Axes are `batch`, `tokens` and any other words. What all sequences share has no batch axis, and after the choice it
    needs one in the place where the layer's code expects it: give a function. Tuples of tensors are routed one by one.
    """

    states: str
    routed: Mapping[str, str | tuple[str, ...] | Router] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    batch_first: bool | Callable[[nn.Module], bool] = True

    def __post_init__(self):
        for name, how in self.routed.items():
            patterns = how if isinstance(how, tuple) else (how,)
            if callable(how) or patterns == ("boundaries",):
                continue
            words = [pattern.split() if isinstance(pattern, str) else [] for pattern in patterns]
            if not all("batch" in each for each in words) or not any("tokens" in each for each in words):
                raise ConfigurationError(
                    f"`routed`: the axes of {name!r} must be words with `batch` and `tokens` among them, got "
                    f"{how!r}; what all sequences share needs a function (see docs/tokens.md)."
                )

    def is_batch_first(self, layer: nn.Module) -> bool:
        return self.batch_first(layer) if callable(self.batch_first) else self.batch_first

    def knows(self, name: str) -> bool:
        return name == self.states or name in self.routed or name in self.whole or name in self.caches

    def why_not(
        self, arguments: Mapping[str, Any], num_tokens: int, ignored: Callable[[str], bool] = lambda name: False
    ) -> str:
        """Why these arguments can't be routed, with hidden states of so many tokens; empty where they can.

        Args:
            ignored: whether the layers never look at an argument of this name, so that it need not be cut.
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
                    f"the layers are given {name!r}, a tensor that the token layout does not know; leave it out of the "
                    "batch, or name it in `routed` or `whole` of a layout (attnwatch.register_token_layout)"
                )
        return ""

    def _why_not_routed(self, name: str, value: Any, num_tokens: int) -> str:
        if isinstance(value, tuple | list):
            return next(filter(None, (self._why_not_routed(name, part, num_tokens) for part in value)), "")
        if value is None:
            return ""
        if not isinstance(value, Tensor):
            return f"{name!r} is a {type(value).__name__}, which can't be cut to the kept tokens"
        if callable(self.routed[name]):
            return ""
        axes = _axes(self.routed[name], value.ndim)
        if axes is None:
            return f"{name!r} has the shape {list(value.shape)}, which the token layout does not know"
        lengths = [length for axis, length in zip(axes.split(), value.shape, strict=True) if axis == "tokens"]
        if any(length not in (1, num_tokens) for length in lengths):
            return f"{name!r} is for {max(lengths)} tokens, and the layers are given {num_tokens}"
        return ""

    def known(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the layer's arguments tell about its tokens, see `choice.KNOWN`."""
        return {
            "layer_mask": arguments.get("attention_mask"),
            "layer_positions": arguments.get("position_ids"),
            "hidden": arguments.get("src_key_padding_mask"),
            "boundaries": arguments.get("cu_seq_lens_q"),
        }

    def route(self, name: str, value: Any, kept: Tensor, layer: nn.Module, arguments: Mapping[str, Any]) -> Any:
        """An argument as the layer gets it for the kept tokens."""
        if isinstance(value, tuple | list):
            return type(value)(self.route(name, part, kept, layer, arguments) for part in value)
        if value is None:
            return None
        how = self.routed[name]
        return how(value, kept, layer, arguments) if callable(how) else take(value, _axes(how, value.ndim), kept)


def _axes(patterns: str | tuple[str, ...], ndim: int) -> str | None:
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return next((axes for axes in patterns if len(axes.split()) == ndim), None)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor) and value.ndim > 0


_registered: dict[type, TokenLayout] = {}


def register_token_layout(layer_class: type, layout: TokenLayout) -> None:
    """Say what layers of a class are given; its subclasses are not included.

    What happens inside the layer must not depend on the distance of two tokens in the tensor: positions have to come
    as an argument, or be in the states already.

    Args:
        layer_class: class of the layers of a stack.
        layout: which of its arguments are about tokens.

    Raises:
        ConfigurationError: either is of another kind, or `layout` names an argument that the layers do not have.
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise ConfigurationError(f"`layer_class` must be a class of modules, got {layer_class!r}.")
    if not isinstance(layout, TokenLayout):
        raise ConfigurationError(f"`layout` must be a TokenLayout, got {layout!r}.")
    names = inspect.signature(layer_class.forward).parameters
    for name in (layout.states, *layout.routed):
        if name not in names:
            raise ConfigurationError(f"`layout`: the forward of {layer_class.__name__} has no argument {name!r}.")
    _registered[layer_class] = layout


def registered_layout(layer: nn.Module) -> TokenLayout | None:
    """Of the layer's class, also while it has one of its own (see `interception`)."""
    return _registered.get(original_class(layer))


def _torch_mask(mask: Tensor, kept: Tensor, layer: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
    """`src_mask` [tokens, tokens] or [batch · heads, tokens, tokens]."""
    num_heads = layer.self_attn.num_heads
    if mask.ndim == 2:
        if arguments.get("is_causal"):  # kept in their order, earlier tokens are the same ones
            return mask[: kept.shape[1], : kept.shape[1]]
        return take(mask, "tokens tokens", kept).repeat_interleave(num_heads, 0)
    heads = mask.unflatten(0, (len(kept), -1))
    return take(heads, "batch heads tokens tokens", kept).flatten(0, 1)


TORCH = TokenLayout(
    "src",
    routed={"src_mask": _torch_mask, "src_key_padding_mask": "batch tokens"},
    whole=("is_causal",),
    batch_first=lambda layer: layer.self_attn.batch_first,
)
TRANSFORMERS = TokenLayout(
    "hidden_states",
    routed={
        "attention_mask": ("batch tokens", "batch heads tokens tokens"),
        "position_ids": ("batch tokens", "sections batch tokens"),
        **dict.fromkeys(
            ("position_embeddings", "position_embeddings_global", "position_embeddings_local"),
            ("batch tokens features", "sections batch tokens features"),
        ),
        "causal_attention_mask": "batch heads tokens tokens",
        "encoder_attention_mask": ("batch memory", "batch heads tokens memory"),
        "cu_seq_lens_q": "boundaries",
        "cu_seq_lens_k": "boundaries",
    },
    whole=(
        *("encoder_hidden_states", "use_cache", "max_length_q", "max_length_k", "num_items_in_batch"),
        # Of transformers before 5: masks of heads, and the places in the cache, of which there is none.
        *("head_mask", "layer_head_mask", "cross_attn_layer_head_mask", "cache_position"),
    ),
    caches=CACHES,
)
