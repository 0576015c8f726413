"""Several attention calls as one, with the heads of all: a GPU is then given few large kernels instead of many."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnwatch.metrics.inputs import AttentionInputs

# What shapes the logits and must be the same object in calls that are joined.
_SHARED = ("attn_mask", "key_padding", "segments", "mask_mod", "query_mask", "positions")


def kind_of_call(inputs: AttentionInputs, rows: Tensor) -> Hashable:
    """Equal for calls that can be joined, as long as both are alive; None where this one can't be.

    Args:
        rows: that are looked at, the same object for calls that are joined.
    """
    masks = (inputs.attn_mask, inputs.position_bias)
    if any(mask is not None and mask.ndim > 2 and mask.shape[-3] != 1 for mask in masks):
        return None  # it tells heads apart
    query, key = inputs.query, inputs.key
    shapes = (key.device, query.dtype, key.dtype, key.shape[0], query.shape[1] // key.shape[1], *key.shape[2:])
    shaping = (inputs.num_queries, inputs.is_causal, inputs.scale, inputs.softcap, inputs.sliding_window)
    shared = tuple(id(getattr(inputs, name)) for name in (*_SHARED, "position_bias"))
    return (*shapes, *shaping, inputs.has_positions, id(rows), *shared)


def at_rows(inputs: AttentionInputs, rows: Tensor) -> AttentionInputs:
    """The call with a copy of its keys, and of these of its queries (int64 [R], ascending), whatever becomes of it."""
    return replace(
        inputs,
        query=inputs.query.detach().index_select(2, rows),
        key=inputs.key.detach().clone(),
        query_rows=rows,
        num_all_queries=inputs.num_queries,
    )


def joined(calls: Sequence[AttentionInputs]) -> AttentionInputs:
    """One call with the heads of all, those of the first call first; they have the same `kind_of_call`."""
    if len(calls) == 1:
        return calls[0]
    return replace(
        calls[0],
        query=torch.cat([call.query for call in calls], dim=1),
        key=torch.cat([call.key for call in calls], dim=1),
    )
