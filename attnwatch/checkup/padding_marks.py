"""Marks by which padding is known: its id, or its pattern."""

import torch
from torch import Tensor, nn

# Least length of the runs that look like padding, and least number of sequences with such a run.
_LEAST_RUN, _LEAST_PADDED = 3, 3


def padding_by_id(module: nn.Module, values: Tensor) -> Tensor:
    """Return a mask of the padding ids at either end of a sequence, bool [batch, tokens].

    It is empty if the padding id is not an end-of-text id and occurs inside a text, like a real token.
    """
    pad_id = padding_id(module)
    if values.ndim != 2 or pad_id is None:
        return torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
    is_pad = values == pad_id
    padding = at_end(is_pad) | is_pad.cumprod(1).bool()
    if id_of_padding_alone(module) is not None and bool((is_pad & ~padding).any()):
        return torch.zeros_like(padding)
    return padding & (padding.sum(1, keepdim=True) > 1)  # a single one may be an end-of-text token


def padding_by_pattern(values: Tensor) -> Tensor:
    """Return a mask of what looks like padding: runs of one id, or of zero features, at one end of some sequences.

    The runs have different lengths, and the id is nowhere else.

    Args:
        values: ids [batch, tokens] or features [batch, tokens, features].
    """
    nothing = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
    if values.ndim == 2 and values.is_floating_point():
        return nothing
    for each in (values, values.flip(1)):
        is_pad = (each == each[:, -1].mode().values) if values.ndim == 2 else (each == 0).all(-1)
        padding = at_end(is_pad)
        lengths = padding.sum(1)
        is_likely = int((lengths >= _LEAST_RUN).sum()) >= _LEAST_PADDED and len(lengths.unique()) > 2
        if is_likely and not (is_pad & ~padding).any() and not is_pad.all(1).any():
            padding &= lengths[:, None] > 1
            return padding if each is values else padding.flip(1)
    return nothing


def id_of_padding_alone(module: nn.Module) -> int | None:
    """Return the padding id; None if it is unknown or is also an end-of-text id."""
    pad_id = padding_id(module)
    ends = getattr(getattr(module, "config", None), "eos_token_id", None)
    return None if pad_id in (ends if isinstance(ends, list) else [ends]) else pad_id


def at_end(where: Tensor) -> Tensor:
    """Return a mask of the entries that are True up to the end of their row, bool [batch, tokens]."""
    return where.flip(1).cumprod(1).flip(1).bool()


def padding_id(module: nn.Module) -> int | None:
    """Return the padding id from the config or the embeddings of a model; None if neither has one."""
    configured = getattr(getattr(module, "config", None), "pad_token_id", None)
    if configured is not None:
        return int(configured)
    embeddings = (part.padding_idx for part in module.modules() if isinstance(part, nn.Embedding))
    return next((index for index in embeddings if index is not None), None)
