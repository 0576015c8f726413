"""Batches of keyword arguments for a model: token ids, padding masks and labels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attnwatch.errors import ConfigurationError

Batch = Mapping[str, Any]
"""Arguments of a model's forward by name: `input_ids` and, if there is padding, `attention_mask`, [batch, tokens]."""

LABEL_NAMES = ("labels", "label")


def token_mask(batch: Batch) -> Tensor:
    """Return a mask of the tokens, bool [batch, tokens], False at padding.

    Raises:
        ConfigurationError: the batch has no `input_ids`, or an `attention_mask` with another shape.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise ConfigurationError(f"`batches`: each batch must have `input_ids` [batch, tokens], got {describe(batch)}.")
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        got = list(mask.shape) if isinstance(mask, Tensor) else describe(mask)
        raise ConfigurationError(f"`batches`: `attention_mask` must be {list(ids.shape)} like `input_ids`, got {got}.")
    return mask.bool()


def labels_of(batch: Batch) -> Any:
    """Return the labels of a batch under either of their names; None if it has none."""
    return next((batch[name] for name in LABEL_NAMES if batch.get(name) is not None), None)


def sequences_of(batch: Batch, indices: Tensor) -> dict[str, Any]:
    """Return the sequences of a batch at these indices, int64 [rows]; entries without a batch dimension are kept."""
    size = len(batch["input_ids"])
    has_batch = {name: isinstance(each, Tensor) and each.ndim > 0 and len(each) == size for name, each in batch.items()}
    return {name: each[indices] if has_batch[name] else each for name, each in batch.items()}


def padded_batch(
    rows: Sequence[Sequence[int]], pad_id: int, *, device: torch.device | None = None, side: Literal["left", "right"]
) -> dict[str, Tensor]:
    """Return sequences of token ids with their mask, padded on one side."""
    ids = [torch.tensor(row, dtype=torch.int64, device=device) for row in rows]
    ones = list(map(torch.ones_like, ids))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
    }


def as_batch(given: Any) -> Batch:
    """Return a copy of a data loader's batch.

    Raises:
        ConfigurationError: the batch is not a mapping.
    """
    if isinstance(given, Mapping):
        return dict(given)
    raise ConfigurationError(
        f"`batches`: each batch must be a mapping with `input_ids`, as for transformers models; got "
        f"{describe(given)}. Pass your own `batches`."
    )


def as_batches(given: Iterable[Any]) -> list[Batch]:
    """Return copies of several batches.

    Raises:
        ConfigurationError: there are no batches, or one is not a mapping.
    """
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ConfigurationError(f"`batches` must be a list of batches, got a {type(given).__name__}.")
    batches = list(map(as_batch, given))
    if not batches:
        raise ConfigurationError("`batches` is empty: pass at least one.")
    return batches


def check_batch(batch: Batch) -> None:
    """Raise a `ConfigurationError` unless the batch has tokens and its labels, if any, are a tensor."""
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            f"`batch` must be a mapping with `input_ids`, which the model takes by name; got a {type(batch).__name__}."
        )
    mask = token_mask(batch)
    if mask.numel() == 0:
        raise ConfigurationError(
            f"`batch` is empty, `input_ids` has shape {list(mask.shape)}: pass at least one sequence with one token."
        )
    labels = labels_of(batch)
    if labels is not None and not isinstance(labels, Tensor):
        raise ConfigurationError(
            f"`batch`: `labels` must be a tensor, got a {type(labels).__name__}: pass torch.tensor(labels)."
        )


def describe(value: Any) -> str:
    """Return the type of a value, with its shape or its keys, for an error message."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, value)) or 'nothing'} in it"
    return f"a {type(value).__name__}"
