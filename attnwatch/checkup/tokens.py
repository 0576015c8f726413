"""Tokens among the arguments of a forward pass, and their padding."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.checkup.containers import tensors_in
from attnwatch.checkup.forward import CannotCheck, RecordedForward
from attnwatch.checkup.padding_marks import at_end, id_of_padding_alone, padding_by_id, padding_by_pattern
from attnwatch.checkup.token_layouts import Layout, PatchGrid
from attnwatch.utils.messages import counted

_IDS = ("input_ids", "decoder_input_ids", "tokens", "ids")
# Masks that are 1 at tokens, and masks that are True at padding.
_MASKS_OF_TOKENS = ("attention_mask",)
_MASKS_OF_PADDING = ("padding_mask", "key_padding_mask", "src_key_padding_mask", "pad_mask")
# Beginnings of the names of masks that do not hide padding.
_OTHER_MASKS = ("loss", "label", "target", "causal", "prefix", "special")
# Fewer hidden tokens may have the same id by chance.
_LEAST_PADDING = 4
# Least length of a series of numbers, and number of blocks along each side of an image whose patches are unknown.
_LEAST_SERIES, _BLOCKS = 8, 4
# Kinds of tokens that a mask of special tokens shows: the first, the last, and padding.
_FEW_KINDS = 3
_NO_TOKENS = ("mask", "position", "token_type", "segment", "cache", "num_items")
LABELS = ("label", "target")
"""Parts of the names of arguments that hold labels."""


@dataclass(frozen=True)
class Tokens:
    """Argument of a forward pass with one entry per token.

    Attributes:
        name: name of the argument.
        values: ids [batch, tokens], or features [batch, tokens, features], which may be the patches of an image.
        padding: mask of the padding, bool [batch, tokens].
        mask_name: name of the argument that marks the padding; None if there is no such argument.
        pad_id: id of the padding; None if it is unknown or also marks the end of a text.
        is_hidden: True if the mask hides the padding; False if only its id is known.
        is_guessed: True if the padding is known only by its pattern: one id at the ends of sequences.
        has_tokens_first: True if the model expects them as [tokens, batch, …].
        grid: layout of the argument, such as the size of the image and of its patches; None for the usual one.
    """

    name: str
    values: Tensor
    padding: Tensor
    mask_name: str | None
    grid: PatchGrid | Layout | None = None
    pad_id: int | None = None
    is_hidden: bool = False
    is_guessed: bool = False
    has_tokens_first: bool = False

    @property
    def are_ids(self) -> bool:
        """True if the values are ids of a vocabulary."""
        return self.values.ndim == 2

    @property
    def length(self) -> int:
        """Number of tokens per sequence, including padding."""
        return self.values.shape[1]

    @property
    def mask_fault(self) -> str:
        """Description of what the mask does instead of hiding the padding; empty if the mask is plausible."""
        if not self.are_ids or not self.padding.any():
            return ""
        hidden = self.values[self.padding].unique()
        if len(hidden) < 2:
            return ""
        if self.padding.all():
            return f"hides all tokens, which have {len(hidden)} ids"
        if len(self.values[~self.padding].unique()) == 1:
            return "hides all tokens except those with one id, which looks like padding"
        if _FEW_KINDS >= len(self.values[~self.padding].unique()) < len(hidden) / _FEW_KINDS:
            shown = counted(len(self.values[~self.padding].unique()), "id")
            return f"hides tokens with {len(hidden)} ids and shows only {shown}"
        is_long = int(self.padding.sum()) >= _LEAST_PADDING and int(self.padding.sum(1).max()) > 1
        if is_long and len(self.values[self.padding.flip(1)].unique()) == 1:
            return "hides one end of the sequences, although the other end has a single id, which looks like padding"
        return ""

    @property
    def hides_text(self) -> bool:
        """True if the mask hides various ids between visible tokens, as a mask that drops random tokens does."""
        if not self.are_ids or self.mask_fault:
            return False
        shown = ~self.padding
        is_between = self.padding & (shown.cumsum(1) > 0) & (shown.flip(1).cumsum(1).flip(1) > 0)
        return int(is_between.sum()) >= _LEAST_PADDING and len(self.values[is_between].unique()) > 1

    @property
    def num_of_others(self) -> int:
        """Number of sequences whose mask has the wrong length, if the masks fit the texts in another order; else 0."""
        if not self.are_ids or self.mask_name is None or not self.padding.any() or self.mask_fault:
            return 0
        for values, hidden in ((self.values, self.padding), (self.values.flip(1), self.padding.flip(1))):
            is_pad = at_end(values == values[:, -1].mode().values)
            shown, texts = (~hidden).sum(1), (~is_pad).sum(1)
            if bool((hidden == at_end(hidden)).all()) and torch.equal(shown.sort().values, texts.sort().values):
                return int((shown != texts).sum())
        return 0

    @property
    def num_too_long(self) -> int:
        """Number of padded sequences, if the mask of each leaves a padding token visible; else 0.

        That token may be an end-of-text token that the config does not declare.
        """
        if not self.are_ids or self.mask_name is None or self.pad_id is None or self.mask_fault:
            return 0
        is_padded = self.padding[:, -1]
        shown = (at_end(self.values == self.pad_id) & ~self.padding)[is_padded].any(1)
        return len(shown) if len(shown) > 1 and shown.all() else 0

    def as_argument(self, values: Tensor) -> Tensor:
        """Return new values of the tokens in the form that the model accepts."""
        if self.has_tokens_first:
            return values.transpose(0, 1)
        return values if self.grid is None else self.grid.image(values)

    def replaced(self, where: Tensor) -> Tensor:
        """Return the values, replaced by others from the batch at the positions in `where`, bool [batch, tokens].

        Raises:
            CannotCheck: all tokens are the same or padding, so there is nothing to replace them with.
        """
        real = self.values[~self.padding]
        if not len(real):
            raise CannotCheck("all tokens in the batch are padding")
        if not self.are_ids:
            other = real[torch.arange(where.numel(), device=real.device).add(7) % len(real)].view_as(self.values)
            return torch.where(where[..., None], 0.5 - other, self.values)
        kinds = real.unique()
        if len(kinds) < 2:
            raise CannotCheck("all tokens in the batch are the same")
        if (others := self._of_other_sequences(where)) is not None:
            return torch.where(where, others, self.values)
        place = torch.searchsorted(kinds, self.values.contiguous()).clamp(max=len(kinds) - 1)
        shift = 1 + torch.arange(where.numel(), device=real.device).view_as(self.values) % (len(kinds) - 1)
        return torch.where(where, kinds[(place + shift) % len(kinds)], self.values)

    def _of_other_sequences(self, where: Tensor) -> Tensor | None:
        """Return other ids from the same places of other sequences; None if some places have the same id in all.

        Each column of a table has ids of its own.
        """
        others, is_found = self.values.clone(), ~where
        for shift in range(1, len(self.values)):
            moved = self.values.roll(shift, 0)
            fits = ~is_found & (moved != self.values) & ~self.padding.roll(shift, 0)
            others, is_found = torch.where(fits, moved, others), is_found | fits
        return others if bool(is_found.all()) else None


def tokens_of(forward: RecordedForward) -> Tokens:
    """Return the tokens that a forward pass received.

    Raises:
        CannotCheck: no argument has a token axis.
    """
    arguments = forward.arguments
    name = name_of_ids(arguments) or _name_of_features(arguments)
    if name is None:
        return _of_other_layout(arguments) or _patches_of(forward.module, arguments)
    first = forward.has_tokens_first
    values = arguments[name].transpose(0, 1) if first else arguments[name]
    shape = values.shape[:2]
    for mask_name in (*_MASKS_OF_TOKENS, *_MASKS_OF_PADDING, *_other_masks(arguments, shape)):
        mask = arguments.get(mask_name)
        if isinstance(mask, Tensor) and mask.shape == shape:
            padding = mask.bool() if mask_name in _MASKS_OF_PADDING else mask == 0
            if padding.all() and not _is_of_transformers(forward.module) and len(values.unique()) > 1:
                padding = ~padding  # a mask that is True at padding, for a batch without any
            pad_id = id_of_padding_alone(forward.module)
            tokens = Tokens(name, values, padding, mask_name, pad_id=pad_id, is_hidden=True, has_tokens_first=first)
            if padding.any() and not tokens.hides_text:
                return tokens
            return _with_guessed_padding(replace(tokens, is_hidden=False), forward.module)
    no_padding = torch.zeros(shape, dtype=torch.bool, device=values.device)
    return _with_guessed_padding(Tokens(name, values, no_padding, None, has_tokens_first=first), forward.module)


def _of_other_layout(arguments: Mapping[str, Any]) -> Tokens | None:
    """Return the texts of several choices [batch, choices, tokens], the frames of videos, or the values of series."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or any(part in name for part in (*_NO_TOKENS, *LABELS)):
            continue
        if value.ndim == 4:  # images
            return None
        is_float = value.is_floating_point()
        if value.ndim == 3 and not is_float and value.dtype is not torch.bool:
            values = value.flatten(1)
        elif is_float and value.ndim == 5 and value.shape[1] >= _LEAST_PADDING:
            values = value.flatten(2)
        elif is_float and value.ndim == 2 and value.shape[1] >= _LEAST_SERIES:
            values = value[..., None]
        else:
            continue
        layout = Layout(value.shape[1:])
        mask = arguments.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == value.shape and mask.ndim == 3:
            return Tokens(name, values, mask.flatten(1) == 0, "attention_mask", layout, is_hidden=True)
        no_padding = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
        return Tokens(name, values, no_padding, None, layout)
    return None


def _with_guessed_padding(tokens: Tokens, module: nn.Module) -> Tokens:
    """Return tokens whose padding is known by its id or, failing that, by its pattern."""
    padding = padding_by_id(module, tokens.values)
    if padding.any():
        return replace(tokens, padding=padding)
    padding = padding_by_pattern(tokens.values)
    return replace(tokens, padding=padding, is_guessed=bool(padding.any()))


def _is_of_transformers(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "model_type")


def _other_masks(arguments: Mapping[str, Any], shape: torch.Size) -> list[str]:
    """Return the names of bool masks that are True up to some token of each sequence and False from there on."""
    masks = {
        name: value
        for name, value in arguments.items()
        if "mask" in name and isinstance(value, Tensor) and value.dtype is torch.bool and value.shape == shape
    }
    return [
        name
        for name, mask in masks.items()
        if not name.startswith(_OTHER_MASKS) and mask[:, 0].all() and bool((mask.int().diff() <= 0).all())
    ]


def sequences_of_one_token(arguments: Mapping[str, Any]) -> int:
    """Return the number of sequences if each has one token and nothing else to attend to; otherwise 0."""
    tensors = [value for _, value in tensors_in(arguments) if value.ndim > 1]
    if any(value.shape[1] > 1 for value in tensors) or any(_is_cache(name, value) for name, value in arguments.items()):
        return 0
    ids = [value for name, value in arguments.items() if name in _IDS and isinstance(value, Tensor)]
    return len(ids[0]) if ids and ids[0].ndim == 2 else 0


def _is_cache(name: str, value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and ("past" in name or "cache" in name)


def _patches_of(module: nn.Module, arguments: Mapping[str, Any]) -> Tokens:
    """Return the patches of images as tokens, as read by the first convolution."""
    images = [(name, value) for name, value in arguments.items() if isinstance(value, Tensor) and value.ndim == 4]
    convolution = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if not images:
        raise CannotCheck("the model received no tokens: ids [batch, tokens] or features [batch, tokens, features]")
    (name, value), *_ = images
    is_known = convolution is not None and convolution.stride == convolution.kernel_size
    height, width = (max(side // _BLOCKS, 1) for side in value.shape[2:])
    if convolution is not None and is_known:
        height, width = convolution.kernel_size
    if not value.is_floating_point() or value.shape[2] % height or value.shape[3] % width:
        raise CannotCheck(f"`{name}` can't be cut into patches of {height} × {width}")
    grid = PatchGrid((value.shape[2], value.shape[3]), (height, width), is_known)
    values = grid.patches(value)
    return Tokens(name, values, torch.zeros(values.shape[:2], dtype=torch.bool, device=value.device), None, grid)


def name_of_ids(arguments: Mapping[str, Any]) -> str | None:
    """Return the name of the first token ids; None if there are none."""
    ids = [name for name in names_of_ids(arguments) if not any(part in name for part in LABELS)]
    return next((name for name in _IDS if name in ids), ids[0] if ids else None)


def names_of_ids(arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of all arguments that may hold token ids [batch, tokens], labels included."""
    return [
        name
        for name, value in arguments.items()
        if isinstance(value, Tensor)
        and value.ndim == 2
        and value.dtype in (torch.int64, torch.int32)
        and value.shape[1] > 1
        and not any(part in name for part in _NO_TOKENS)
    ]


def _name_of_features(arguments: Mapping[str, Any]) -> str | None:
    return next(
        (
            name
            for name, value in arguments.items()
            if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() and value.shape[1] > 1
        ),
        None,
    )
