"""Sums over query rows that can be added over calls, steps and processes, and the statistics derived from them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from attnwatch.attention.inputs import AttentionInputs
from attnwatch.attention.rows import AttentionRows
from attnwatch.attention.sampling import row_blocks
from attnwatch.errors import ConfigurationError
from attnwatch.statistics import Reduction, Statistic
from attnwatch.utils.messages import warn


class Accumulator:
    """Accumulator that computes statistics as sums [statistics, 2, heads], in the order of `names`.

    The two entries are (sum of values, sum of weights) for means, (maximum, number of rows) for maxima and
    (variance of the sum, sum of weights) for standard errors. The sums of several calls or processes `merge`.

    Args:
        statistics: statistics to compute; None means all registered ones.
        drop_failing: with a warning, stop computing a statistic that raises or returns the wrong shape; its values are
            then nan. Otherwise, its error is raised.

    Attributes:
        names: names of the statistics.
        maxima: indices of the statistics that are maxima.
    """

    def __init__(self, statistics: Iterable[Statistic] | None = None, *, drop_failing: bool = False):
        self._statistics = tuple(Statistic.registry.values() if statistics is None else statistics)
        self._drop_failing = drop_failing
        self._failed: set[str] = set()
        self.names = tuple(statistic.name for statistic in self._statistics)
        self.maxima = self._indices(Reduction.MAX)
        self._errors = self._indices(Reduction.STANDARD_ERROR)

    def __len__(self) -> int:
        """Return the number of statistics."""
        return len(self._statistics)

    @torch.no_grad()
    def sums(self, inputs: AttentionInputs, rows: Tensor) -> Tensor:
        """Return the sums of one call over these query rows: [statistics, 2, heads].

        Raises:
            ConfigurationError: a statistic raises or returns the wrong shape, unless `drop_failing`.
        """
        if inputs.is_empty or len(rows) == 0:
            return self._sums_of_nothing(inputs)
        with torch.autocast(inputs.query.device.type, enabled=False):
            blocks = [self._sums_of_block(AttentionRows(inputs, block)) for block in row_blocks(inputs, rows)]
        per_row = torch.cat(blocks, -1)
        sums = per_row.sum(-1)
        for index in self.maxima:
            sums[index, 0] = per_row[index, 0].amax(-1)
        for index in self._errors:
            sums[index, 0] = _sampling_variance(*per_row[index], num_queries=inputs.num_queries)
        return sums

    def merge(self, sums: Tensor, other: Tensor) -> Tensor:
        """Return the combined sums of two calls, as if their rows belonged to one call."""
        merged = sums + other
        for index in self.maxima:
            merged[index, 0] = torch.maximum(sums[index, 0], other[index, 0])
        return merged

    def reordered(self, sums: Tensor, names: Sequence[str]) -> Tensor:
        """Return sums of other statistics in the order of these; missing statistics get empty sums.

        Args:
            sums: sums [other statistics, 2, heads].
            names: names of the other statistics; more names than sums are allowed.
        """
        result = sums.new_zeros((len(self), *sums.shape[1:]))
        result[self.maxima, 0] = -torch.inf
        for index, name in enumerate(self.names):
            if name in names[: len(sums)]:
                result[index] = sums[names.index(name)]
        return result

    def values(self, sums: Tensor) -> Tensor:
        """Return the statistics computed from sums: [statistics, heads]; nan if no row counted."""
        values, weights = sums[:, 0].clone(), sums[:, 1]
        values[self._errors] = values[self._errors].clamp(min=0).sqrt()
        divisors = weights.clone()
        divisors[self.maxima] = 1
        return torch.where(weights > 0, values / divisors, torch.nan)

    def _indices(self, reduction: Reduction) -> list[int]:
        return [index for index, statistic in enumerate(self._statistics) if statistic.reduction is reduction]

    def _sums_of_nothing(self, inputs: AttentionInputs) -> Tensor:
        sums = inputs.query.new_zeros((len(self), 2, inputs.num_heads), dtype=inputs.compute_dtype)
        sums[self.maxima, 0] = -torch.inf
        return sums

    def _sums_of_block(self, rows: AttentionRows) -> Tensor:
        """Return (sum of the counted values over the batch, their number): [statistics, 2, heads, rows].

        For maxima, the first entry is the maximum.
        """
        both = [self._evaluated(statistic, rows) for statistic in self._statistics]
        values, counts = torch.stack([each for each, _ in both]), torch.stack([each for _, each in both])
        sums = torch.where(counts, values, 0).sum(1)
        for index in self.maxima:
            sums[index] = torch.where(counts[index], values[index], -torch.inf).amax(0)
        return torch.stack([sums, counts.sum(1).to(sums.dtype)], dim=1)

    def _evaluated(self, statistic: Statistic, rows: AttentionRows) -> tuple[Tensor, Tensor]:
        """Return the values of the rows, and a mask of the rows that count: both [batch, heads, rows]."""
        if statistic.name not in self._failed:
            try:
                values = _expanded(statistic.values(rows), "values", rows.shape[:3])
                counts = _expanded(statistic.counts(rows), "counts", rows.shape[:3])
                return values.to(rows.device, rows.dtype), counts.to(rows.device, torch.bool)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._fail(statistic, error)
        nothing = torch.zeros(rows.shape[:3], dtype=rows.dtype, device=rows.device)
        return nothing, nothing.bool()

    def _fail(self, statistic: Statistic, error: Exception) -> None:
        what = f"{Statistic.registry.describe(statistic)} failed with {type(error).__name__}: {error}"
        if not self._drop_failing:
            raise ConfigurationError(what) from error
        self._failed.add(statistic.name)
        warn(f"{what}. It is no longer computed, and its values are nan.", always=True)


def _expanded(values: object, method: str, shape: Sequence[int]) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"`{method}` must return a tensor, got {type(values).__name__}")
    try:
        return values.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"`{method}` must return a tensor that can be broadcast to [batch, heads, rows] = {list(shape)}, "
            f"got {list(values.shape)}"
        ) from None


def _sampling_variance(values: Tensor, weights: Tensor, *, num_queries: int) -> Tensor:
    """Return the variance of the sum over sampled rows: [heads], from [heads, rows].

    With one row per stratum, there is no within-stratum variance, so it is estimated from successive differences of the
    residuals (Wolter, Introduction to Variance Estimation, 2007, §8.2), with the finite-population correction.
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
