"""What is known about the tokens of one forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnwatch.attention import HIDDEN_AT
from attnwatch.capture import sees_own_key


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one forward, as a criterion sees them.

    Attributes:
        states: hidden states [batch, tokens, features] that enter the first of the layers, without gradient.
        input_ids: int [batch, tokens], where the model was given some.
        padding: bool [batch or 1, tokens], True at padding; None where nothing says that there is some.
        starts: bool [batch or 1, tokens], True at the first token of each sequence, and of each document in it.
    """

    states: Tensor
    input_ids: Tensor | None
    padding: Tensor | None
    starts: Tensor

    @classmethod
    def of(cls, states: Tensor, known: Mapping[str, Tensor]) -> "TokenBatch":
        """From hidden states, and from what is known of them (see `choice.KNOWN`)."""
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
        )

    def protected(self, number: int, ids: Sequence[int]) -> Tensor:
        """Bool: the first `number` tokens of each document, and tokens of these vocabulary ids."""
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
    """The first token that is not padding."""
    if padding is None:
        return torch.arange(states.shape[1], device=states.device)[None] == 0
    return (~padding).cumsum(1) == 1


def _restarts(known: Mapping[str, Tensor], tokens: torch.Size) -> Tensor | None:
    """Where positions do not go on: the documents of a packed batch."""
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
    """Tokens that see nothing before themselves: the documents of a block-diagonal mask."""
    mask = known.get("layer_mask")
    if mask is None or mask.ndim != 4 or mask.shape[-2:] != (tokens[1], tokens[1]):
        return None
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > HIDDEN_AT
    first = seen.to(torch.uint8).argmax(-1)
    return (first == torch.arange(tokens[1], device=mask.device)) & sees_own_key(mask)
