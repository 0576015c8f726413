"""Tokens of one forward pass, and the information known about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from attnwatch.attention import HIDDEN_AT
from attnwatch.capture import sees_own_key
from attnwatch.errors import ConfigurationError

TokenSource = Literal["attention", "losses"]
"""Attribute of a `TokenBatch` that is costly, and therefore only available if the criterion declares it."""


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of one forward pass, as seen by a criterion.

    Attributes:
        states: hidden states [batch, tokens, features] that enter the first of the layers, without gradient.
        input_ids: int [batch, tokens]; None if the model received none of this shape.
        padding: bool [batch or 1, tokens], True at padding; None if no padding is known.
        starts: bool [batch or 1, tokens], True at the first token of each sequence, and of each document in it.
        generator: random number generator on the CPU, seeded for this forward pass; None for torch's default.
        read: tensors [batch, tokens] that the criterion declares in `reads`.
    """

    states: Tensor
    input_ids: Tensor | None
    padding: Tensor | None
    starts: Tensor
    generator: torch.Generator | None = None
    read: Mapping[TokenSource, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, states: Tensor, known: Mapping[str, Tensor], generator: torch.Generator | None = None) -> "TokenBatch":
        """Return the batch of hidden states [batch, tokens, features], with the values that `choice.KNOWN` lists."""
        tokens = states.shape[:2]
        ids = known.get("input_ids")
        padding = _padding(known, tokens)
        starts = _first(padding, states)
        for found in (_restarts(known, tokens), _boundaries(known, tokens), _first_seen(known, tokens)):
            starts = starts if found is None else starts | found.to(states.device)
        return cls(
            states.detach(),
            ids if ids is not None and ids.shape == tokens else None,
            padding,
            starts if padding is None else starts & ~padding,
            generator=generator,
        )

    @property
    def attention(self) -> Tensor:
        """Attention [batch, tokens] that each token receives in the preceding layer, relative to uniform attention.

        Raises:
            ConfigurationError: the criterion has not declared that it reads "attention".
        """
        return self._read("attention")

    @property
    def losses(self) -> Tensor:
        """Running mean [batch, tokens] of the loss of each token's vocabulary id, nan for unseen ids.

        Raises:
            ConfigurationError: the criterion has not declared that it reads "losses".
        """
        return self._read("losses")

    def _read(self, source: TokenSource) -> Tensor:
        if source not in self.read:
            raise ConfigurationError(f"a criterion that reads `batch.{source}` must declare reads = ({source!r},).")
        return self.read[source]

    def noise(self) -> Tensor:
        """Return uniform random numbers [batch, tokens], the same on every device, new at each call."""
        return torch.rand(self.states.shape[:2], generator=self.generator).to(self.states.device)

    def protected(self, number: int, ids: Sequence[int]) -> Tensor:
        """Return a mask of the first `number` tokens of each document, and of the tokens with these vocabulary ids."""
        protected = self.starts if number else torch.zeros_like(self.starts)
        for _ in range(1, number):
            protected = protected | torch.nn.functional.pad(protected, (1, -1))
        if ids and self.input_ids is not None:
            protected = protected | torch.isin(self.input_ids, torch.tensor(ids, device=self.input_ids.device))
        return protected


def _padding(known: Mapping[str, Tensor], tokens: torch.Size) -> Tensor | None:
    hidden = known.get("hidden")
    if hidden is not None and hidden.shape == tokens:
        return hidden if hidden.dtype == torch.bool else hidden != 0
    for name in ("attention_mask", "layer_mask"):
        mask = known.get(name)
        if mask is not None and mask.shape == tokens:
            return mask == 0
    mask = known.get("layer_mask")
    if mask is None or mask.ndim != 4 or mask.shape[-1] != tokens[1]:
        return None
    own = sees_own_key(mask)
    return ~(own | ~own.any(-1, keepdim=True))


def _first(padding: Tensor | None, states: Tensor) -> Tensor:
    """Return a mask of the first token that is not padding."""
    if padding is None:
        return torch.arange(states.shape[1], device=states.device)[None] == 0
    return (~padding).cumsum(1) == 1


def _restarts(known: Mapping[str, Tensor], tokens: torch.Size) -> Tensor | None:
    """Return a mask of the tokens whose positions restart, where documents of a packed batch begin."""
    positions = known.get("position_ids", known.get("layer_positions"))
    if positions is None or positions.shape not in (tokens, (1, tokens[1])):
        return None
    goes_on = positions[:, 1:] > positions[:, :-1]
    return ~torch.nn.functional.pad(goes_on, (1, 0), value=False)


def _boundaries(known: Mapping[str, Tensor], tokens: torch.Size) -> Tensor | None:
    boundaries = known.get("boundaries")
    if boundaries is None or tokens[0] != 1:
        return None
    return torch.isin(torch.arange(tokens[1], device=boundaries.device), boundaries)[None]


def _first_seen(known: Mapping[str, Tensor], tokens: torch.Size) -> Tensor | None:
    """Return a mask of the tokens that see no earlier ones, where documents of a block-diagonal mask begin."""
    mask = known.get("layer_mask")
    if mask is None or mask.ndim != 4 or mask.shape[-2:] != (tokens[1], tokens[1]):
        return None
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > HIDDEN_AT
    first = seen.to(torch.uint8).argmax(-1)
    return (first == torch.arange(tokens[1], device=mask.device)) & sees_own_key(mask)
