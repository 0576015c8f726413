"""Tokens among the arguments of a forward, and which of them are padding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.checkup.forward import CannotCheck, RecordedForward

_IDS = ("input_ids", "decoder_input_ids", "tokens", "ids")
# Masks that are 1 where there is a token, and those that are True where there is none.
_MASKS_OF_TOKENS = ("attention_mask",)
_MASKS_OF_PADDING = ("padding_mask", "key_padding_mask", "src_key_padding_mask", "pad_mask")
_NO_TOKENS = ("label", "target", "mask", "position", "token_type", "segment", "cache", "num_items")


@dataclass(frozen=True)
class Tokens:
    """Argument of a forward with one entry for each token.

    Attributes:
        name: of the argument.
        values: ids [batch, tokens], or features [batch, tokens, features].
        padding: where there is padding, bool [batch, tokens].
        mask_name: argument that says where there is padding; None if nothing says so.
    """

    name: str
    values: Tensor
    padding: Tensor
    mask_name: str | None

    @property
    def are_ids(self) -> bool:
        """True if the values are ids of a vocabulary."""
        return self.values.ndim == 2

    @property
    def length(self) -> int:
        """Number of tokens of a sequence, padding included."""
        return self.values.shape[1]

    @property
    def hides_the_tokens(self) -> bool:
        """True if what is marked as padding are different ids, and everything else is one and the same."""
        if not self.are_ids or not self.padding.any() or self.padding.all():
            return False
        return len(self.values[~self.padding].unique()) == 1 and len(self.values[self.padding].unique()) > 1

    def replaced(self, where: Tensor) -> Tensor:
        """Return the values with other ones of the batch where `where` is True, bool [batch, tokens].

        Raises:
            CannotCheck: all tokens are alike, so that there is nothing to replace one with.
        """
        real = self.values[~self.padding]
        if not self.are_ids:
            other = real[torch.arange(where.numel(), device=real.device).add(7) % len(real)].view_as(self.values)
            return torch.where(where[..., None], 0.5 - other, self.values)
        kinds = real.unique()
        if len(kinds) < 2:
            raise CannotCheck("all tokens of the batch are alike")
        place = torch.searchsorted(kinds, self.values.contiguous()).clamp(max=len(kinds) - 1)
        shift = 1 + torch.arange(where.numel(), device=real.device).view_as(self.values) % (len(kinds) - 1)
        return torch.where(where, kinds[(place + shift) % len(kinds)], self.values)


def tokens_of(forward: RecordedForward, arguments: Mapping[str, Any]) -> Tokens:
    """Return the tokens that a forward was given.

    Args:
        forward: tells names and model.
        arguments: of the forward, perhaps for fewer sequences.

    Raises:
        CannotCheck: no argument has a token axis.
    """
    name = _name_of_ids(arguments) or _name_of_features(arguments)
    if name is None:
        raise CannotCheck("the model was given no tokens: ids [batch, tokens] or features [batch, tokens, features]")
    values = arguments[name]
    shape = values.shape[:2]
    for mask_name in (*_MASKS_OF_TOKENS, *_MASKS_OF_PADDING):
        mask = arguments.get(mask_name)
        if isinstance(mask, Tensor) and mask.shape == shape:
            padding = mask == 0 if mask_name in _MASKS_OF_TOKENS else mask.bool()
            return Tokens(name, values, padding, mask_name)
    padding = torch.zeros(shape, dtype=torch.bool, device=values.device)
    pad_id = _pad_id(forward.module)
    if values.ndim == 2 and pad_id is not None:  # only at the ends: a token of a text may have this id too
        is_pad = values == pad_id
        at_end = is_pad.flip(1).cumprod(1).flip(1).bool()
        padding = at_end | is_pad.cumprod(1).bool()
    return Tokens(name, values, padding, None)


def _name_of_ids(arguments: Mapping[str, Any]) -> str | None:
    ids = [
        name
        for name, value in arguments.items()
        if isinstance(value, Tensor)
        and value.ndim == 2
        and value.dtype in (torch.int64, torch.int32)
        and value.shape[1] > 1
        and not any(part in name for part in _NO_TOKENS)
    ]
    return next((name for name in _IDS if name in ids), ids[0] if ids else None)


def _name_of_features(arguments: Mapping[str, Any]) -> str | None:
    return next(
        (
            name
            for name, value in arguments.items()
            if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() and value.shape[1] > 1
        ),
        None,
    )


def _pad_id(module: nn.Module) -> int | None:
    configured = getattr(getattr(module, "config", None), "pad_token_id", None)
    if configured is not None:
        return int(configured)
    embeddings = (part.padding_idx for part in module.modules() if isinstance(part, nn.Embedding))
    return next((index for index in embeddings if index is not None), None)
