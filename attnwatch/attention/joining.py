"""Joining of attention calls into one with all heads, so that a GPU runs a few large kernels instead of many."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnwatch.attention.identity import Identity
from attnwatch.attention.inputs import AttentionInputs, select_rows

# Inputs that affect the logits and must be the same object in joined calls.
_SHARED = ("attn_mask", "position_bias", "key_padding", "segments", "mask_mod", "query_mask", "positions")
# Those of them with a row for each query.
_OF_ROWS = ("attn_mask", "position_bias")


def kind_of_call(inputs: AttentionInputs, rows: Tensor) -> Hashable:
    """Return a key that is equal for calls that can be joined; None if this call can't be joined.

    Args:
        rows: query rows to observe; the same object for joined calls.
    """
    masks = (inputs.attn_mask, inputs.position_bias)
    if any(mask is not None and mask.ndim > 2 and mask.shape[-3] != 1 for mask in masks):
        return None  # it distinguishes heads
    query, key = inputs.query, inputs.key
    shapes = (key.device, query.dtype, key.dtype, key.shape[0], query.shape[1] // key.shape[1], *key.shape[2:])
    shaping = (inputs.num_queries, inputs.is_causal, inputs.scale, inputs.softcap, inputs.sliding_window)
    shared = (Identity(getattr(inputs, name)) for name in _SHARED)
    return (*shapes, *shaping, inputs.has_positions, inputs.learned_sink is None, Identity(rows), *shared)


def at_rows(inputs: AttentionInputs, rows: Tensor, alike: AttentionInputs | None = None) -> AttentionInputs:
    """Return the call with copies of its keys, of these rows of its queries, and of its masks.

    Args:
        rows: int64 [R], query rows, ascending.
        alike: result of this function for a call with the same `kind_of_call`, whose masks are shared.
    """
    return replace(
        inputs,
        query=inputs.query.detach().index_select(2, rows),
        key=inputs.key.detach().clone(),
        learned_sink=None if inputs.learned_sink is None else inputs.learned_sink.detach().clone(),
        query_rows=rows,
        num_all_queries=inputs.num_queries,
        **({name: getattr(alike, name) for name in _SHARED} if alike is not None else _copies(inputs, rows)),
    )


def _copies(inputs: AttentionInputs, rows: Tensor) -> dict[str, Tensor]:
    given = {name: getattr(inputs, name) for name in _SHARED}
    tensors = {name: tensor.detach() for name, tensor in given.items() if isinstance(tensor, Tensor)}
    return {
        name: (select_rows(tensor, rows) if name in _OF_ROWS else tensor).clone() for name, tensor in tensors.items()
    }


def joined(calls: Sequence[AttentionInputs]) -> AttentionInputs:
    """Return one call with the heads of all calls, in order. All must have the same `kind_of_call`."""
    if len(calls) == 1:
        return calls[0]
    sinks = [call.learned_sink for call in calls if call.learned_sink is not None]
    return replace(
        calls[0],
        learned_sink=torch.cat(sinks) if sinks else None,
        query=torch.cat([call.query for call in calls], dim=1),
        key=torch.cat([call.key for call in calls], dim=1),
    )
