"""Route of one batch through the layers that see only the kept tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import put_kept_positions
from attnwatch.errors import ConfigurationError
from attnwatch.tokens.axes import put_states, take_states
from attnwatch.tokens.layouts import TokenLayout
from attnwatch.utils.interception import Run


class Route:
    """Route of the kept tokens in one forward pass.

    Args:
        layout: token layout of the layers.
        kept: int64 [batch, kept], the kept tokens.
        states: hidden states [batch, tokens, features] that enter the first layer.

    Attributes:
        num_layers: number of layers run so far.
    """

    def __init__(self, layout: TokenLayout, kept: Tensor, states: Tensor):
        self.num_layers = 0
        self._layout, self._kept, self._states = layout, kept, states
        self._next: Any = None
        self._routed: list[tuple[str, Any, Any]] = []

    def through(
        self, layer: nn.Module, names: Sequence[str], run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a layer on the kept tokens and return its output.

        Args:
            layer: the next layer.
            names: names of the arguments of its forward, in order.
            run: function that calls it.
            args, kwargs: arguments of the call.
        """
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        args = tuple(self._argument(name, value, layer, given) for name, value in zip(names, args, strict=False))
        kwargs = {name: self._argument(name, value, layer, given) for name, value in kwargs.items()}
        before = put_kept_positions(self._kept)
        try:
            output = run(*args, **kwargs)
        finally:
            put_kept_positions(before)
        self._next = _first(output)
        self.num_layers += 1
        return output

    def rejoin(self, output: Any, *, batch_first: bool) -> Any:
        """Return the last layer's output, with the other tokens' states from before the first layer."""
        states = _first(output) if batch_first else _first(output).transpose(0, 1)
        whole = put_states(self._states, self._kept, states)
        whole = whole if batch_first else whole.transpose(0, 1)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def _argument(self, name: str, value: Any, layer: nn.Module, given: dict[str, Any]) -> Any:
        layout = self._layout
        if name == layout.states:
            return self._entering(value, layer)
        if name in layout.caches:
            return None
        if name not in layout.routed or value is None:
            return value
        for known, of, routed in self._routed:  # most objects are shared by all layers
            if known == name and of is value:
                return routed
        routed = layout.route(name, value, self._kept, layer, given)
        self._routed.append((name, value, routed))
        return routed

    def _entering(self, states: Tensor, layer: nn.Module) -> Tensor:
        if self._next is None:
            taken = take_states(self._states, self._kept)
            return taken if self._layout.is_batch_first(layer) else taken.transpose(0, 1)
        if not torch.compiler.is_compiling() and states is not self._next:
            raise ConfigurationError(
                "`model`: the hidden states change between the layers in which tokens are dropped; choose "
                "`first_layer` and `last_layer` so that they do not."
            )
        return states


def _first(output: Any) -> Tensor:
    """Return the hidden states in the output of a layer."""
    return output[0] if isinstance(output, tuple) else output
