"""Attention that tokens receive in the layer before the first that drops some."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs, attention_received
from attnwatch.capture import Capture, ForwardPass
from attnwatch.errors import ConfigurationError, NoAttentionError
from attnwatch.tokens.batch import TokenBatch

# Query rows from which the attention that a key receives is estimated.
_QUERY_ROWS = 16


class ReceivedAttention:
    """Attention that the tokens of the current forward pass received in one layer.

    Args:
        criterion: name of the criterion that reads it.
        layer: the layer before the first that drops tokens; None if there is none.

    Raises:
        ConfigurationError: no attention can be observed in the layer.
    """

    def __init__(self, criterion: str, layer: nn.Module | None):
        self._criterion = criterion
        self._received: Tensor | None = None
        if layer is None:
            raise ConfigurationError(
                f"`criterion` {criterion!r} reads the layer before `first_layer`, so `first_layer` must be at least 1."
            )
        try:
            self._capture = Capture(layer, self._observe)
        except NoAttentionError as error:
            raise ConfigurationError(
                f"`criterion` {criterion!r} can't observe the layer before `first_layer`: {error}"
            ) from None

    @contextlib.contextmanager
    def observed(self, is_dropping: Callable[[], bool], generator: Callable[[], torch.Generator]) -> Iterator[None]:
        """Observe the layer while the context is open.

        Args:
            is_dropping: function that returns whether tokens are dropped in the current forward pass.
            generator: function that returns the generator of the current forward pass, on the CPU.
        """
        self._is_dropping, self._generator = is_dropping, generator
        self._capture.attach()
        try:
            with self._capture.arm():  # always armed, because compiled code can't be switched step by step
                yield
        finally:
            self._capture.detach()

    def of(self, batch: TokenBatch) -> Tensor:
        """Return the attention that each token received: [batch, tokens]. May be called once per forward pass.

        Raises:
            ConfigurationError: no attention between these tokens was observed.
        """
        received, self._received = self._received, None
        if received is None or received.shape != batch.states.shape[:2]:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in self._capture.coverage().items())
            raise ConfigurationError(
                f"`criterion` {self._criterion!r} observed no attention in the layer before `first_layer` ({reasons})."
            )
        return received

    @torch.no_grad()
    def _observe(self, site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        if self._is_dropping() and inputs.has_positions:
            self._received = attention_received(inputs, _QUERY_ROWS, self._generator())
