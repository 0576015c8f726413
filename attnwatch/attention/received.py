"""Attention weights of some query rows, and the attention that keys receive from these rows."""

import torch
from torch import Tensor

from attnwatch.attention.inputs import AttentionInputs
from attnwatch.attention.sampling import stratified_rows


@torch.no_grad()
def attention_weights(inputs: AttentionInputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention weights, and a mask of the keys that the rows see: both [batch, heads, rows, keys].

    Rows that see no key, or are padding, are 0. A row is nan if the logit of a key that it sees is not finite. Rows do
    not include the weight of a learned sink.

    Args:
        inputs: inputs of one attention call.
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

    s_j is the mean of p_ij · n_i over heads and over the rows i that see key j, where n_i is the number of keys that
    row i sees. With learned sinks, a row is weighted by its attention to tokens. Rows with a nonfinite logit are
    skipped. Uniform attention gives 1 for all keys, even with a causal mask, under which more queries see early tokens.
    The value is 1 if none of the rows sees the key, and nan if all rows that see it are skipped.

    Args:
        inputs: inputs of one attention call.
        num_rows: number of query rows to observe, one random row from each of as many strata; None means all.
        generator: random number generator on the CPU.
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
