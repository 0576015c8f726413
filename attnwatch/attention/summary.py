"""Statistics of one attention call."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from attnwatch.attention.accumulate import Accumulator
from attnwatch.attention.inputs import checked_inputs
from attnwatch.attention.sampling import stratified_rows
from attnwatch.errors import ConfigurationError


class AttentionStatistics(Mapping[str, Tensor]):
    """Statistics of one attention call by name: float32 tensors [heads], as attributes and as items.

    There is one for each registered `Statistic`; `attnwatch.Statistic.registry` explains them. Means are over rows of
    all sequences that see at least two keys and whose logits are finite. A statistic is nan if there is no such row;
    `nonfinite` is also known if a mask hides all keys except one from each row. Logits beyond 1e30 count as infinite in
    float32. The weight on a learned sink of a head (gpt-oss) is included in `sink_mass` but not in `max_weight`. All
    other statistics use the weights on tokens, which sum to one without it.

    Args:
        values: tensors by name.
        num_rows: number of observed query rows.
    """

    def __init__(self, values: Mapping[str, Tensor], num_rows: int):
        self._values = dict(values)
        self.num_rows = num_rows

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Tensor:
        values = vars(self).get("_values", {})  # not set yet while the object is copied
        if name not in values:
            raise AttributeError(f"there is no statistic {name!r}; there are: {', '.join(values)}")
        return values[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"AttentionStatistics({', '.join(self._values)}; num_rows={self.num_rows})"


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
    """Compute statistics per head of softmax(scale · query · keyᵀ + mask), without holding the matrix.

    Arguments have the same meaning as in `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        query: queries [batch, heads, queries, head_dim], floating point.
        key: keys [batch, key heads, keys, head_dim].
        attn_mask: mask broadcastable to [batch, heads, queries, keys]; bool (True: allowed) or float (added to the
            logits; -1e4 or less hides a key).
        is_causal: True if query i sees only keys 0 to i; combined with `attn_mask` if both are given.
        scale: factor of the dot products; None means 1 / sqrt(head_dim).
        enable_gqa: allow fewer key heads than query heads.
        num_query_rows: number of stratified random query rows to observe; None means all. Costs
            num_query_rows / queries of an attention forward. `max_logit` is then the maximum over these rows.
        generator: CPU generator that draws the rows; None means PyTorch's default generator.
        query_mask: bool [batch, queries], False for padding, which must not count.

    Returns:
        `AttentionStatistics`, float32 tensors [heads] on the device of `query`, without gradient.

    Raises:
        ConfigurationError: a shape, a dtype or `num_query_rows` does not fit, or a registered statistic fails.

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
    accumulator = Accumulator()
    values = accumulator.values(accumulator.sums(inputs, rows.to(query.device))).float()
    return AttentionStatistics(dict(zip(accumulator.names, values, strict=True)), len(rows))
