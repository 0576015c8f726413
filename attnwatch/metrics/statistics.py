"""The statistics: each is declared once, as a field of `AttentionStatistics`.

Its formula, unit, range, description and reduction live in the declaration; accumulation, recording, dashboards
and the documentation follow from it. Nothing else has to change when a field is added.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.metrics.inputs import AttentionInputs, checked_inputs
from attnwatch.metrics.rows import AttentionRows
from attnwatch.metrics.sampling import row_blocks, stratified_rows


class Reduction(Enum):
    """How the values of single rows become one number per head."""

    MEAN = "mean over rows"
    MAX = "maximum over rows"
    STANDARD_ERROR = "standard error of the mean over rows, from sampling them"


@dataclass(frozen=True)
class Statistic:
    """Declaration of one statistic.

    Attributes:
        name: field of `AttentionStatistics`, key of a history.
        unit: of the values, "" where they have none.
        low, high: range; None where unbounded.
        formula: for one query row with weights p over its n visible keys and logits z.
        summary: one line for people.
        reduction: from rows to a head.
        values: of a block of rows, broadcastable to [B, H, R].
        weights: bool, which of them count, broadcastable likewise.
        per_layer: shown as a curve per layer on dashboards, not only for the whole model.
    """

    name: str
    unit: str
    low: float | None
    high: float | None
    formula: str
    summary: str
    reduction: Reduction
    values: Callable[[AttentionRows], Tensor]
    weights: Callable[[AttentionRows], Tensor]
    per_layer: bool = False

    @property
    def tag(self) -> str:
        """Name on dashboards."""
        return f"attention/{self.name}"


def _declare(
    unit: str,
    low: float | None,
    high: float | None,
    formula: str,
    summary: str,
    values: Callable[[AttentionRows], Tensor],
    *,
    reduction: Reduction = Reduction.MEAN,
    weights: Callable[[AttentionRows], Tensor] = lambda rows: rows.valid,
    per_layer: bool = False,
):
    declaration = dict(
        unit=unit,
        low=low,
        high=high,
        formula=formula,
        summary=summary,
        values=values,
        reduction=reduction,
        weights=weights,
        per_layer=per_layer,
    )
    return dataclasses.field(metadata=declaration)


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of one attention call, float32 tensors [heads].

    Means are over rows (of all sequences) that see at least two keys and whose logits are finite; nan where there
    is no such row.
    """

    entropy: Tensor = _declare(
        "nats", 0, None, "H = -Σ_j p_j log p_j", "entropy of the attention weights", lambda rows: rows.entropy
    )
    normalized_entropy: Tensor = _declare(
        "",
        0,
        1,
        "H / log n",
        "entropy relative to uniform attention (1: uniform, 0: one key)",
        lambda rows: rows.entropy / rows.max_entropy,
        per_layer=True,
    )
    normalized_entropy_stderr: Tensor = _declare(
        "",
        0,
        None,
        "sqrt((1 - R/Q) · Σ_r (e_{r+1} - e_r)² · R / (2(R - 1))) / Σ_r w_r",
        "standard error of normalized_entropy, from looking at R of Q query rows",
        lambda rows: rows.entropy / rows.max_entropy,
        reduction=Reduction.STANDARD_ERROR,
    )
    max_entropy: Tensor = _declare(
        "nats", 0, None, "log n", "entropy that uniform attention would have", lambda rows: rows.max_entropy
    )
    max_logit: Tensor = _declare(
        "",
        None,
        None,
        "max_j z_j",
        "largest attention logit in the rows that were looked at",
        lambda rows: rows.max_logit,
        reduction=Reduction.MAX,
        per_layer=True,
    )
    logit_std: Tensor = _declare(
        "", 0, None, "std_j z_j", "spread of the logits of a row (0: uniform attention)", lambda rows: rows.logit_std
    )
    sink_mass: Tensor = _declare(
        "",
        0,
        1,
        "p_first",
        "attention weight on the first visible key",
        lambda rows: rows.sink_mass,
        per_layer=True,
    )
    entropy_without_sink: Tensor = _declare(
        "nats",
        0,
        None,
        "H(p_j / (1 - p_first), j ≠ first)",
        "entropy of the weights on all keys but the first visible one",
        lambda rows: rows.entropy_without_sink,
    )
    distance: Tensor = _declare(
        "tokens",
        0,
        None,
        "Σ_j p_j |i - j|",
        "mean distance between a query and the keys it attends to",
        lambda rows: rows.distance,
        weights=lambda rows: rows.valid & rows.inputs.has_positions,
    )
    content_sensitivity: Tensor = _declare(
        "nats",
        0,
        None,
        "H(mean_b p) - mean_b H(p)",
        "how much the pattern differs between the sequences of a batch (0: content is ignored)",
        lambda rows: rows.content_sensitivity,
        weights=lambda rows: rows.comparable,
        per_layer=True,
    )
    nonfinite: Tensor = _declare(
        "",
        0,
        1,
        "any visible z_j is nan or inf",
        "share of rows with a logit that is nan or infinite",
        lambda rows: (~rows.is_finite).to(rows.max_logit.dtype),
        weights=lambda rows: rows.counts,
    )
    num_rows: int

    @classmethod
    def from_sums(cls, sums: Tensor, num_rows: int) -> "AttentionStatistics":
        """From the sums of `accumulate`."""
        values = means_of_sums(sums).float()
        return cls(**dict(zip(STATISTICS, values, strict=True)), num_rows=num_rows)


STATISTICS: dict[str, Statistic] = {
    field.name: Statistic(name=field.name, **field.metadata)
    for field in dataclasses.fields(AttentionStatistics)
    if field.metadata
}
_MAXIMA = [index for index, statistic in enumerate(STATISTICS.values()) if statistic.reduction is Reduction.MAX]
_ERRORS = [
    index for index, statistic in enumerate(STATISTICS.values()) if statistic.reduction is Reduction.STANDARD_ERROR
]


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
    return AttentionStatistics.from_sums(accumulate(inputs, rows.to(query.device)), len(rows))


@torch.no_grad()
def accumulate(inputs: AttentionInputs, rows: Tensor) -> Tensor:
    """Sums from which `means_of_sums` makes the statistics: [statistics, 2, heads], in the order of `STATISTICS`.

    The two entries are (sum of values, sum of weights) for means, (maximum, number of rows) for maxima and
    (variance of the sum, sum of weights) for standard errors. Sums of several calls or processes `merge`.
    """
    with torch.autocast(inputs.query.device.type, enabled=False):
        per_row = torch.cat([_sums_of_block(AttentionRows(inputs, block)) for block in row_blocks(inputs, rows)], -1)
    sums = per_row.sum(-1)
    for index in _MAXIMA:
        sums[index, 0] = per_row[index, 0].amax(-1)
    for index in _ERRORS:
        sums[index, 0] = _sampling_variance(*per_row[index], num_queries=inputs.num_queries)
    return sums


def merge(sums: Tensor, other: Tensor) -> Tensor:
    """The sums of two calls together, as if their rows had been one call's."""
    merged = sums + other
    for index in _MAXIMA:
        merged[index, 0] = torch.maximum(sums[index, 0], other[index, 0])
    return merged


def means_of_sums(sums: Tensor) -> Tensor:
    """[statistics, heads] from the sums of `accumulate`; nan where no row counted."""
    values, weights = sums[:, 0].clone(), sums[:, 1]
    values[_ERRORS] = values[_ERRORS].clamp(min=0).sqrt()
    divisors = weights.clone()
    divisors[_MAXIMA] = 1
    return torch.where(weights > 0, values / divisors, torch.nan)


def _sums_of_block(rows: AttentionRows) -> Tensor:
    """[statistics, 2, heads, rows]"""
    return torch.stack([_sum_over_batch(statistic, rows) for statistic in STATISTICS.values()])


def _sum_over_batch(statistic: Statistic, rows: AttentionRows) -> Tensor:
    """(sum of the counting values, their number): [2, heads, rows]."""
    values, weights = statistic.values(rows), statistic.weights(rows)
    if values.ndim == 2:  # a comparison across the batch: one value for all sequences
        values, weights = values[None], weights[None]
    if statistic.reduction is Reduction.MAX:
        reduced = torch.where(weights, values, -torch.inf).amax(0)
    else:
        reduced = torch.where(weights, values, 0).sum(0)
    return torch.stack([reduced, weights.sum(0).to(reduced.dtype)])


def _sampling_variance(values: Tensor, weights: Tensor, *, num_queries: int) -> Tensor:
    """Variance of the sum over sampled rows: [heads], from [heads, rows].

    One row per stratum leaves no within-stratum variance, so successive differences of the residuals stand for it
    (Wolter, Introduction to Variance Estimation, 2007, §8.2), with the finite-population correction.
    """
    num_rows = values.shape[-1]
    if num_rows >= num_queries:
        return torch.zeros_like(values[:, 0])
    if num_rows < 2:
        return torch.full_like(values[:, 0], torch.nan)
    mean = values.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1)
    differences = (values - weights * mean).diff(dim=-1)
    scale = (1 - num_rows / num_queries) * num_rows / (2 * (num_rows - 1))
    return scale * differences.square().sum(-1)
