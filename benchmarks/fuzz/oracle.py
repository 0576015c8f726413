"""Attention by its definition, the whole matrix in float64. It shares no code with the package."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.fuzz.cases import Case

# Computed in float32, or in float64, numbers up to here have squares, sums and products that are finite.
LARGEST = {torch.float32: 1e29, torch.float64: 1e140}


@dataclass
class Matrix:
    """Attention of a case: arrays [batch, heads, queries, keys] and [batch, heads, queries].

    Attributes:
        logits: float64, nan or infinite where the definition says so.
        visible: bool.
        is_finite: bool, of rows; all logits that they see are finite.
        is_sure: bool, of rows: neither a logit nor a term of one is near the end of the dtype's range. Of the others,
            nan is right, and so is the exact value.
        magnitude: largest sum of absolute terms behind the logit of a key that some row sees; rounding grows with it.
        eps: of the dtype that is computed in.
    """

    logits: np.ndarray
    visible: np.ndarray
    sinks: np.ndarray | None
    is_finite: np.ndarray
    is_sure: np.ndarray
    magnitude: float
    eps: float

    @property
    def num_visible(self) -> np.ndarray:
        return self.visible.sum(-1)


def compute_dtype(case: Case) -> torch.dtype:
    return torch.float64 if case.query.dtype == torch.float64 else torch.float32


def matrix_of(case: Case, *, with_model_options: bool) -> Matrix:
    """Return the attention matrix of a case that is not empty."""
    options = case.options | (case.model_options if with_model_options else {})
    query, key = _float64(case.query), _float64(case.key)
    key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    scale = query.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
    with np.errstate(all="ignore"):
        logits = scale * np.einsum("bhqd,bhkd->bhqk", query, key)
        terms = abs(scale) * np.einsum("bhqd,bhkd->bhqk", np.abs(query), np.abs(key))
        scaled = np.abs(scale * query).max(-1)[..., None]
        if options.get("softcap"):
            logits = options["softcap"] * np.tanh(logits / options["softcap"])
        visible = np.ones(logits.shape, dtype=bool)
        for mask in (options["attn_mask"], options.get("position_bias")):
            if mask is not None and mask.dtype == torch.bool:
                visible &= mask.numpy()
            elif mask is not None:
                bias = _float64(mask)
                visible &= ~(bias <= float(torch.tensor(-1e4, dtype=mask.dtype)))
                logits, terms = logits + bias, terms + np.abs(bias)
        visible &= _by_position(options, logits.shape)
        if options.get("key_padding") is not None:
            visible &= options["key_padding"].numpy()[:, None, None]
        largest = LARGEST[compute_dtype(case)]
        is_sure = ((terms < largest) & (scaled < largest)) | ~np.isfinite(logits)
        counted = np.isfinite(terms) & (terms < largest) & visible.any(2, keepdims=True)
    sinks = options.get("learned_sink")
    is_finite = (np.isfinite(logits) | ~visible).all(-1)
    if sinks is not None:
        is_finite &= ~(np.isnan(_float64(sinks)) | (_float64(sinks) == np.inf))[None, :, None]
    return Matrix(
        logits,
        visible,
        None if sinks is None else _float64(sinks),
        is_finite,
        (is_sure | ~visible).all(-1) & (abs(scale) < largest),
        float(terms[counted].max(initial=0.0)),
        torch.finfo(compute_dtype(case)).eps,
    )


def entropy_of(matrix: Matrix) -> np.ndarray:
    """Return the entropy [batch, heads, queries]; nan where a row sees no key or has a logit that is not finite."""
    result = np.full(matrix.is_finite.shape, np.nan)
    for index in zip(*np.nonzero(matrix.is_finite & (matrix.num_visible > 0)), strict=True):
        result[index] = _entropy(_softmax(matrix.logits[index][matrix.visible[index]]))
    return result


def statistics_of(matrix: Matrix, query_mask: Tensor | None) -> dict[str, np.ndarray]:
    """Return each statistic [heads], of all query rows."""
    batch, heads, queries, _ = matrix.logits.shape
    counts = matrix.num_visible >= 2
    if query_mask is not None:
        counts &= query_mask.numpy()[:, None]
    alone = _sees_one_of_several(matrix, counts, query_mask)
    valid = counts & matrix.is_finite
    names = ("normalized_entropy_stderr", "content_sensitivity", "nonfinite")
    found = {name: np.full(heads, np.nan) for name in (*ROW_STATISTICS, *names)}
    for head in range(heads):
        rows = [_row(matrix, (b, head, i)) for b in range(batch) for i in range(queries) if valid[b, head, i]]
        if rows:
            for name in ROW_STATISTICS:
                values = [row[name] for row in rows]
                found[name][head] = max(values) if name == "max_logit" else np.mean(values)
            found["normalized_entropy_stderr"][head] = 0.0  # all rows are looked at
        looked_at = counts[:, head] | alone[:, head]
        if looked_at.any():
            found["nonfinite"][head] = 1 - (looked_at & matrix.is_finite[:, head]).sum() / looked_at.sum()
        same = (matrix.visible[:, head] == matrix.visible[:1, head]).all((0, 2)) & valid[:, head].all(0) & (batch > 1)
        if same.any():
            found["content_sensitivity"][head] = np.mean([_divergence(matrix, head, i) for i in np.nonzero(same)[0]])
    return found


def _sees_one_of_several(matrix: Matrix, counts: np.ndarray, query_mask: Tensor | None) -> np.ndarray:
    """Return which rows see one key, as all others of their sequence do at most, although there are other tokens.

    `nonfinite` is about these rows too.
    """
    alone = (matrix.num_visible == 1) & ~counts.any(-1, keepdims=True) & (matrix.logits.shape[-1] >= 2)
    if query_mask is not None:
        alone &= (query_mask & (query_mask.sum(-1, keepdim=True) >= 2)).numpy()[:, None]
    return alone


ROW_STATISTICS = (
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


def _row(matrix: Matrix, index: tuple[int, int, int]) -> dict[str, float]:
    logits, positions = matrix.logits[index][matrix.visible[index]], np.nonzero(matrix.visible[index])[0]
    weights, num_visible = _softmax(logits), len(logits)
    true = weights if matrix.sinks is None else _softmax(np.append(logits, matrix.sinks[index[1]]))
    return {
        "entropy": _entropy(weights),
        "normalized_entropy": _entropy(weights) / np.log(num_visible),
        "max_entropy": np.log(num_visible),
        "max_logit": logits.max(),
        "logit_std": np.abs(logits - logits.mean()).max() and _std(logits),
        "sink_mass": true[0] + true[num_visible:].sum(),
        "max_weight": true[:num_visible].max(),
        "entropy_without_sink": _entropy(_softmax(logits[1:])),
        "distance": (weights * np.abs(index[2] - positions)).sum(),
    }


def _divergence(matrix: Matrix, head: int, row: int) -> float:
    """Return H(mean_b p) - mean_b H(p)."""
    each = [_softmax(matrix.logits[b, head, row][matrix.visible[b, head, row]]) for b in range(len(matrix.logits))]
    return _entropy(np.mean(each, axis=0)) - float(np.mean([_entropy(weights) for weights in each]))


def _std(values: np.ndarray) -> float:
    spread = np.abs(values - values.mean()).max()
    return float(spread * ((values - values.mean()) / spread).std())


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _entropy(weights: np.ndarray) -> float:
    weights = weights[weights > 0]
    return float(-(weights * np.log(weights)).sum())


def _by_position(options: dict, shape: tuple[int, ...]) -> np.ndarray:
    ahead = np.arange(shape[3]) - np.arange(shape[2])[:, None]
    visible = ahead <= 0 if options["is_causal"] else np.ones_like(ahead, dtype=bool)
    window = options.get("sliding_window")
    return visible if window is None else visible & (np.abs(ahead) < window)


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.double().resolve_neg().numpy()
