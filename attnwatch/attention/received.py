"""Attention weights of some query rows, and the attention that keys receive from them."""

import torch
from torch import Tensor

from attnwatch.attention.inputs import AttentionInputs
from attnwatch.attention.sampling import stratified_rows


@torch.no_grad()
def attention_weights(inputs: AttentionInputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention weights, and which keys the rows see: both [batch, heads, rows, keys].

    Rows that see no key, or are padding, are 0. A row is nan if the logit of a key that it sees is not finite. The
    weight of a learned sink is missing in the sum of a row.

    Args:
        inputs: of one attention call.
        rows: int64 [rows], query rows.
    """
    rows = rows.to(inputs.query.device)
    with torch.autocast(inputs.query.device.type, enabled=False):
        logits = inputs.logits(rows)
        visible = inputs.visible(rows)
        visible = torch.ones_like(logits, dtype=torch.bool) if visible is None else visible.expand_as(logits)
        if inputs.query_mask is not None:
            visible = visible & inputs.query_mask[:, None, rows, None]
        is_finite = (logits.isfinite() | ~visible).all(-1, keepdim=True)
        logits = logits.masked_fill(~visible, -torch.inf)
        weights = inputs.with_sink(logits).softmax(-1)[..., -inputs.num_keys :].nan_to_num(nan=0.0)
    return weights.masked_fill(~is_finite, torch.nan), visible


def attention_received(inputs: AttentionInputs, num_rows: int | None, generator: torch.Generator | None) -> Tensor:
    """Return the attention that each key receives from the queries, relative to uniform attention: [batch, keys].

    s_j = mean over heads and over the rows i that see key j of p_ij · n_i, with n_i the number of keys that row i sees.
    Where heads have learned sinks, a row counts as much as it gives to tokens. Rows with a logit that is not finite are
    left out.
    It is 1 everywhere where attention is uniform, also behind a causal mask, under which early tokens are seen by more
    queries; 1 where none of the rows sees the key; and nan where all that see it are left out.

    Args:
        inputs: of one attention call.
        num_rows: query rows that are looked at, one random row of each of as many strata; None: all.
        generator: on the CPU.
    """
    weights, visible = attention_weights(inputs, stratified_rows(inputs.num_queries, num_rows, generator))
    counted = visible & ~weights.isnan()
    weights = weights.nan_to_num(nan=0.0)
    relative = (weights * visible.sum(-1, keepdim=True)).sum((1, 2))
    seen = counted.sum((1, 2))
    if inputs.learned_sink is not None:
        seen = (counted * weights.sum(-1, keepdim=True)).sum((1, 2))
    unknown = visible.any(1).any(1) & ~counted.any(1).any(1)
    received = torch.where(seen > 0, relative / torch.where(seen > 0, seen, 1), 1.0)
    return received.masked_fill(unknown, torch.nan)
