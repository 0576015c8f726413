"""One forward pass of the model: information about its tokens, and reasons to compute all of them."""

from collections.abc import Mapping
from typing import Any

from attnwatch.capture import CACHES
from attnwatch.tokens.stacks import Stack


class ModelCall:
    """Call of the outermost model around a stack.

    Args:
        stack: stack whose layers the model runs.
        arguments: arguments by name; None if the layers are called by unknown code.

    Attributes:
        reads_between: True if an inner model returns the hidden states between the layers.
    """

    def __init__(self, stack: Stack, arguments: Mapping[str, Any] | None = None):
        self.arguments = arguments
        self.reads_between = False
        self._stack = stack

    def known(self, to_layer: Mapping[str, Any]) -> dict[str, Any]:
        """Return the information about the tokens in the model's and the layer's arguments; see `choice.KNOWN`."""
        names = ("input_ids", "attention_mask", "position_ids")
        of_model = {name: self._given(f"{self._stack.argument_prefix}{name}") for name in names}
        return {**of_model, **self._stack.layout.known(to_layer)}

    def why_all(self, to_layer: Mapping[str, Any], num_tokens: int) -> str:
        """Return the reason why all tokens must be computed; empty if some may be dropped.

        Args:
            to_layer: arguments of the first layer in which tokens are dropped, by name.
            num_tokens: number of tokens in its hidden states.
        """
        if self._uses_cache(to_layer):
            return "a key-value cache is passed or requested (`use_cache`)"
        reason = self._stack.layout.why_not(to_layer, num_tokens, self._stack.ignores)
        if reason:
            return reason
        if self._given("output_router_logits"):
            return "the router logits of all tokens are requested (output_router_logits)"
        if self.reads_between:
            return "the model around the layers reads the hidden states between them"
        return ""

    def _uses_cache(self, to_layer: Mapping[str, Any]) -> bool:
        """Return whether the user wants a cache. Models also create one in training by default, which is never read."""
        if self.arguments is None:
            return any(to_layer.get(name) is not None for name in self._stack.layout.caches)
        return self._given("use_cache") is True or any(self._given(name) is not None for name in CACHES)

    def _given(self, name: str) -> Any:
        return (self.arguments or {}).get(name)
