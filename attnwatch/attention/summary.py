"""The statistics of one attention call."""

import torch
from torch import Tensor

from attnwatch.attention.accumulate import accumulate, means_of_sums
from attnwatch.attention.inputs import checked_inputs
from attnwatch.attention.sampling import stratified_rows
from attnwatch.attention.statistic import STATISTICS, AttentionStatistics
from attnwatch.errors import ConfigurationError


def attention_statistics(
    query: Tensor,
    key: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    num_query_rows: int | None = None,
    generator: torch.Generator | None = None,
    query_mask: Tensor | None = None,
) -> AttentionStatistics:
    """Statistics per head of softmax(scale · query · keyᵀ + mask), without holding the matrix.

    Arguments mean what they mean in `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        query: [batch, heads, queries, head_dim], floating point.
        key: [batch, key heads, keys, head_dim].
        attn_mask: broadcastable to [batch, heads, queries, keys]; bool (True: allowed) or float (added to the
            logits; -1e4 or less hides a key).
        is_causal: query i sees keys 0 to i; combined with `attn_mask` where both are given.
        scale: factor of the dot products; None means 1 / sqrt(head_dim).
        enable_gqa: allow fewer key heads than query heads.
        num_query_rows: look at so many stratified random query rows; None means all. Costs
            num_query_rows / queries of an attention forward. `max_logit` is then the maximum over these rows.
        generator: CPU generator that draws the rows; None means PyTorch's default one.
        query_mask: bool [batch, queries], False where a query is padding and must not count.

    Returns:
        `AttentionStatistics`, float32 tensors [heads] on the device of `query`, without gradient.

    Raises:
        ConfigurationError: a shape, a dtype or `num_query_rows` does not fit.

    Example:
        >>> import torch
        >>> query, key = torch.zeros(2, 4, 16, 8), torch.randn(2, 4, 16, 8)
        >>> attention_statistics(query, key, is_causal=True).normalized_entropy
        tensor([1., 1., 1., 1.])
    """
    if num_query_rows is not None and num_query_rows < 1:
        raise ConfigurationError(f"`num_query_rows` must be at least 1, or None for all rows; got {num_query_rows}.")
    inputs = checked_inputs(
        query,
        key,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        query_mask=query_mask,
    )
    rows = stratified_rows(inputs.num_queries, num_query_rows, generator)
    values = means_of_sums(accumulate(inputs, rows.to(query.device))).float()
    return AttentionStatistics(**dict(zip(STATISTICS, values, strict=True)), num_rows=len(rows))
