"""From rows to a number per head: sums that calls, steps and processes can add up."""

import torch
from torch import Tensor

from attnwatch.attention.inputs import AttentionInputs
from attnwatch.attention.rows import AttentionRows
from attnwatch.attention.sampling import row_blocks
from attnwatch.attention.statistic import STATISTICS, Reduction


def _indices(reduction: Reduction) -> list[int]:
    return [index for index, statistic in enumerate(STATISTICS.values()) if statistic.reduction is reduction]


MAXIMA = _indices(Reduction.MAX)
_ERRORS = _indices(Reduction.STANDARD_ERROR)


@torch.no_grad()
def accumulate(inputs: AttentionInputs, rows: Tensor) -> Tensor:
    """Sums from which `means_of_sums` makes the statistics: [statistics, 2, heads], in the order of `STATISTICS`.

    The two entries are (sum of values, sum of weights) for means, (maximum, number of rows) for maxima and
    (variance of the sum, sum of weights) for standard errors. Sums of several calls or processes `merge`.
    """
    if inputs.is_empty or len(rows) == 0:
        return _sums_of_nothing(inputs)
    with torch.autocast(inputs.query.device.type, enabled=False):
        per_row = torch.cat([_sums_of_block(AttentionRows(inputs, block)) for block in row_blocks(inputs, rows)], -1)
    sums = per_row.sum(-1)
    for index in MAXIMA:
        sums[index, 0] = per_row[index, 0].amax(-1)
    for index in _ERRORS:
        sums[index, 0] = _sampling_variance(*per_row[index], num_queries=inputs.num_queries)
    return sums


def merge(sums: Tensor, other: Tensor) -> Tensor:
    """The sums of two calls together, as if their rows had been one call's."""
    merged = sums + other
    for index in MAXIMA:
        merged[index, 0] = torch.maximum(sums[index, 0], other[index, 0])
    return merged


def means_of_sums(sums: Tensor) -> Tensor:
    """[statistics, heads] from the sums of `accumulate`; nan where no row counted."""
    values, weights = sums[:, 0].clone(), sums[:, 1]
    values[_ERRORS] = values[_ERRORS].clamp(min=0).sqrt()
    divisors = weights.clone()
    divisors[MAXIMA] = 1
    return torch.where(weights > 0, values / divisors, torch.nan)


def _sums_of_nothing(inputs: AttentionInputs) -> Tensor:
    sums = inputs.query.new_zeros((len(STATISTICS), 2, inputs.num_heads), dtype=inputs.compute_dtype)
    sums[MAXIMA, 0] = -torch.inf
    return sums


def _sums_of_block(rows: AttentionRows) -> Tensor:
    """(sum of the counting values over the batch, their number), or their maximum: [statistics, 2, heads, rows]."""
    statistics = STATISTICS.values()
    values = torch.stack([statistic.values(rows).expand(rows.shape[:3]) for statistic in statistics])
    counts = torch.stack([statistic.weights(rows).expand(rows.shape[:3]) for statistic in statistics])
    sums = torch.where(counts, values, 0).sum(1)
    for index in MAXIMA:
        sums[index] = torch.where(counts[index], values[index], -torch.inf).amax(0)
    return torch.stack([sums, counts.sum(1).to(sums.dtype)], dim=1)


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
