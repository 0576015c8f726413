"""The statistics: each is declared once, as a field of `AttentionStatistics`.

Its formula, unit, range, description and reduction live in the declaration; accumulation, recording, dashboards
and the documentation follow from it. Nothing else has to change when a field is added.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from torch import Tensor

from attnwatch.attention.rows import AttentionRows


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
        values: of a block of rows, broadcastable to [batch, heads, rows].
        weights: bool, which of them count, broadcastable likewise.
        per_layer: shown per layer on dashboards, not only for the whole model.
        chart_span: what the colour scale of a chart covers at least, so that noise does not look like a pattern.
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
    chart_span: float = 0.0

    def chart_range(self, values: np.ndarray) -> tuple[float, float]:
        """Ends of the colour scale for these values (nan: not observed)."""
        shown = values[np.isfinite(values)]
        least, most = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
        low = least if self.low is None else self.low
        high = max(most, low + self.chart_span) if self.high is None else self.high
        return float(low), float(high)

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
    chart_span: float = 0.0,
):
    declaration = {
        "unit": unit,
        "low": low,
        "high": high,
        "formula": formula,
        "summary": summary,
        "values": values,
        "reduction": reduction,
        "weights": weights,
        "per_layer": per_layer,
        "chart_span": chart_span,
    }
    return dataclasses.field(metadata=declaration)


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of one attention call, float32 tensors [heads].

    Means are over rows (of all sequences) that see at least two keys and whose logits are finite; nan where there
    is no such row. `nonfinite` is also known where a mask hides all keys but one from every row. Logits beyond 1e30
    count as infinite in float32. What a sink takes that a head has learned (gpt-oss) is in `sink_mass` and missing in
    `confidence`; all other statistics are of the weights on tokens, which sum to one without it.
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
        chart_span=10.0,
    )
    logit_std: Tensor = _declare(
        "", 0, None, "std_j z_j", "spread of the logits of a row (0: uniform attention)", lambda rows: rows.logit_std
    )
    sink_mass: Tensor = _declare(
        "",
        0,
        1,
        "p_first",
        "attention weight on the first visible key, and on the sink that a head has learned",
        lambda rows: rows.sink_mass,
        per_layer=True,
    )
    confidence: Tensor = _declare(
        "", 0, 1, "max_j p_j", "largest attention weight of a row (arXiv 1905.09418)", lambda rows: rows.confidence
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
        chart_span=0.1,
    )
    nonfinite: Tensor = _declare(
        "",
        0,
        1,
        "any visible z_j is nan or inf",
        "share of rows with a logit that is nan or infinite",
        lambda rows: (~rows.is_finite).to(rows.max_logit.dtype),
        weights=lambda rows: rows.counts_as_finite,
    )
    num_rows: int


STATISTICS: dict[str, Statistic] = {
    field.name: Statistic(name=field.name, **field.metadata)
    for field in dataclasses.fields(AttentionStatistics)
    if field.metadata
}


def _documented() -> str:
    """The attributes as they are declared."""
    lines = ["", "Attributes:"]
    for statistic in STATISTICS.values():
        unit = f", {statistic.unit}" if statistic.unit else ""
        lines.append(f"    {statistic.name}: {statistic.summary}; {statistic.formula}{unit}.")
    lines += ["    num_rows: query rows that were looked at.", ""]
    return "\n".join(f"    {line}".rstrip() for line in lines)


if AttentionStatistics.__doc__:  # there is none under `python -OO`
    AttentionStatistics.__doc__ = AttentionStatistics.__doc__.rstrip() + "\n" + _documented()
