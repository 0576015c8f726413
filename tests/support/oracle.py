"""Slow float64 oracle of the attention statistics: the whole matrix, and each statistic by its literal definition.

It shares no code with the package, and reads one row at a time so that every formula stands alone.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionMatrix:
    """Logits (float64) and visibility (bool) of every key for every query: [batch, heads, queries, keys].

    `magnitude` is the largest sum of absolute terms behind a visible, finite logit: rounding errors grow with it.
    `sinks`: [heads], logits of one more key that the heads have learned, which is no token.
    """

    logits: Tensor
    visible: Tensor
    magnitude: float
    sinks: Tensor | None = None

    def weights(self, b: int, h: int, i: int) -> Tensor:
        """Attention weights of one row over all keys: float64 [keys], 0 at hidden keys."""
        return self.logits[b, h, i].masked_fill(~self.visible[b, h, i], -torch.inf).softmax(-1)

    def visible_logits(self, b: int, h: int, i: int) -> Tensor:
        return self.logits[b, h, i][self.visible[b, h, i]]


def attention_matrix(
    query: Tensor,
    key: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    learned_sink: Tensor | None = None,
) -> AttentionMatrix:
    query, key = query.double(), key.double()
    if enable_gqa:
        key = torch.stack([key[:, h * key.shape[1] // query.shape[1]] for h in range(query.shape[1])], dim=1)
    scale = 1 / query.shape[-1] ** 0.5 if scale is None else scale
    logits = scale * query @ key.mT
    magnitude = abs(scale) * query.abs() @ key.abs().mT
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    visible = torch.ones_like(logits, dtype=torch.bool)
    for mask in (attn_mask, position_bias):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            visible = visible & mask
        else:
            visible = visible & ~(mask <= -1e4)
            logits = logits + mask.double()
            magnitude = magnitude + mask.double().abs()
    if is_causal:
        visible = visible.tril()
    counts = visible & magnitude.isfinite()
    largest = magnitude[counts].max().item() if counts.any() else 0.0
    return AttentionMatrix(logits, visible, largest, None if learned_sink is None else learned_sink.double())


def entropy(p: Tensor) -> Tensor:
    p = p[p > 0]
    return -(p * p.log()).sum()


def oracle_entropy(matrix: AttentionMatrix) -> Tensor:
    """[batch, heads, queries]; nan where a row sees no key or has a visible logit that is not finite."""
    batch, heads, queries, _ = matrix.logits.shape
    result = torch.full((batch, heads, queries), torch.nan, dtype=torch.float64)
    for b, h, i in _indices(batch, heads, range(queries)):
        logits = matrix.visible_logits(b, h, i)
        if len(logits) > 0 and logits.isfinite().all():
            result[b, h, i] = entropy(matrix.weights(b, h, i))
    return result


def oracle_statistics(
    matrix: AttentionMatrix, *, rows: list[int] | None = None, query_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Every statistic of the package by name: float64 [heads], over the query rows `rows` (None: all)."""
    batch, heads, queries, _ = matrix.logits.shape
    rows = list(range(queries)) if rows is None else rows

    def counts(b: int, h: int, i: int) -> bool:
        return matrix.visible[b, h, i].sum() >= 2 and (query_mask is None or bool(query_mask[b, i]))

    def is_valid(b: int, h: int, i: int) -> bool:
        return counts(b, h, i) and bool(matrix.visible_logits(b, h, i).isfinite().all())

    def sees_one_of_several(b: int, h: int, i: int) -> bool:
        """The row sees one key, as all others of its sequence do, although there are other tokens."""
        is_token = query_mask is None or (bool(query_mask[b, i]) and query_mask[b].sum() >= 2)
        is_alone = matrix.visible[b, h, i].sum() == 1 and not any(counts(b, h, other) for other in rows)
        return is_token and is_alone and matrix.logits.shape[-1] >= 2

    per_head = []
    for h in range(heads):
        in_head = list(_indices(batch, [h], rows))
        valid = [_row_statistics(matrix, *index) for index in in_head if is_valid(*index)]
        values = {name: _mean([row[name] for row in valid]) for name in _ROW_STATISTICS}
        values["max_logit"] = max((row["max_logit"] for row in valid), default=_NAN)
        values["normalized_entropy_stderr"] = _stderr(
            [
                [_row_statistics(matrix, b, h, i)["normalized_entropy"] for b in range(batch) if is_valid(b, h, i)]
                for i in rows
            ],
            queries,
        )
        values["content_sensitivity"] = _mean(
            [
                _content_sensitivity(matrix, h, i)
                for i in rows
                if batch >= 2 and all(is_valid(b, h, i) for b in range(batch)) and _same_keys(matrix, h, i)
            ]
        )
        values["nonfinite"] = _mean(
            [
                torch.tensor(float(not matrix.visible_logits(*index).isfinite().all()), dtype=torch.float64)
                for index in in_head
                if counts(*index) or sees_one_of_several(*index)
            ]
        )
        per_head.append(values)
    return {name: torch.stack([values[name] for values in per_head]) for name in per_head[0]}


def assert_entropy_matches(entropy: Tensor, matrix: AttentionMatrix):
    expected = oracle_entropy(matrix)
    tolerance = _tolerance(matrix, entropy.dtype)
    torch.testing.assert_close(entropy.double(), expected, rtol=0, atol=tolerance, equal_nan=True)


def assert_statistics_match(
    statistics,
    matrix: AttentionMatrix,
    *,
    rows: list[int] | None = None,
    query_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
):
    """`statistics` has the statistics as attributes, float32; they were computed in `dtype`."""
    for name, expected in oracle_statistics(matrix, rows=rows, query_mask=query_mask).items():
        unit = matrix.logits.shape[-1] if name == "distance" else 1  # an error of the weights moves it by the keys
        torch.testing.assert_close(
            getattr(statistics, name).double(),
            expected,
            rtol=1e-6,
            atol=unit * _tolerance(matrix, dtype),
            equal_nan=True,
            msg=lambda message, name=name: f"{name}: {message}",
        )


def _tolerance(matrix: AttentionMatrix, dtype: torch.dtype) -> float:
    """A dot product of a dozen terms is off by a few eps of the sum of their absolute values, entropy by as much."""
    return 4 * torch.finfo(dtype).eps * (1 + matrix.magnitude)


_NAN = torch.tensor(torch.nan, dtype=torch.float64)
_ROW_STATISTICS = (
    "entropy",
    "normalized_entropy",
    "max_entropy",
    "max_logit",
    "logit_std",
    "sink_mass",
    "max_weight",
    "entropy_without_sink",
    "distance",
)


def _indices(batch: int, heads, rows):
    heads = range(heads) if isinstance(heads, int) else heads
    return ((b, h, i) for b in range(batch) for h in heads for i in rows)


def _row_statistics(matrix: AttentionMatrix, b: int, h: int, i: int) -> dict[str, Tensor]:
    logits = matrix.visible_logits(b, h, i)
    positions = matrix.visible[b, h, i].nonzero().squeeze(-1)
    p = logits.softmax(-1)
    max_entropy = torch.tensor(float(len(logits)), dtype=torch.float64).log()
    with_sink = logits if matrix.sinks is None else torch.cat([logits, matrix.sinks[h : h + 1]])
    true = with_sink.softmax(-1)
    return {
        "entropy": entropy(p),
        "normalized_entropy": entropy(p) / max_entropy,
        "max_entropy": max_entropy,
        "max_logit": logits.max(),
        "logit_std": logits.std(correction=0),
        "sink_mass": true[0] + true[len(logits) :].sum(),
        "max_weight": true[: len(logits)].max(),
        # The softmax over the other keys is p / (1 - p[0]) also where p[0] rounds to 1.
        "entropy_without_sink": entropy(logits[1:].softmax(-1)),
        "distance": (p * (i - positions).abs()).sum(),
    }


def _content_sensitivity(matrix: AttentionMatrix, h: int, i: int) -> Tensor:
    """H(mean_b p) - mean_b H(p)."""
    weights = torch.stack([matrix.weights(b, h, i) for b in range(len(matrix.logits))])
    return entropy(weights.mean(0)) - torch.stack([entropy(p) for p in weights]).mean()


def _same_keys(matrix: AttentionMatrix, h: int, i: int) -> bool:
    return all(bool((visible == matrix.visible[0, h, i]).all()) for visible in matrix.visible[:, h, i])


def _stderr(values_of_rows: list[list[Tensor]], queries: int) -> Tensor:
    """Standard error of the mean of a systematic sample of rows, from successive differences; 0 for all rows."""
    num_rows = len(values_of_rows)
    num_values = sum(len(values) for values in values_of_rows)
    if num_values == 0:
        return _NAN
    if num_rows == queries:
        return torch.zeros((), dtype=torch.float64)
    if num_rows < 2:
        return _NAN
    mean = sum(sum(values) for values in values_of_rows) / num_values
    residuals = [sum((value - mean for value in values), start=0 * mean) for values in values_of_rows]
    squares = sum((after - before) ** 2 for before, after in itertools.pairwise(residuals))
    variance_of_sum = (1 - num_rows / queries) * num_rows / (2 * (num_rows - 1)) * squares
    return variance_of_sum.sqrt() / num_values


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean() if values else _NAN
