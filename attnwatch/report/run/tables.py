"""Tables of the run page."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from attnwatch.capture import is_observed
from attnwatch.dashboard.odd_layers import odd_layers
from attnwatch.diagnosis import latest
from attnwatch.runs import RunRecord
from attnwatch.utils.labels import site_labels

_MOST_ROWS = 128
_SHOWN = ("normalized_entropy", "max_logit", "sink_mass", "gradient_norm", "weight_norm", "update_ratio")


@dataclass(frozen=True)
class LayerTable:
    """Layers of a run, those with something odd first.

    Attributes:
        columns: names of the columns.
        rows: for each layer its label, module, cells as "first → latest", and what is odd about it.
        left_out: number of layers that are not shown.
    """

    columns: list[str]
    rows: list[tuple[str, str, list[str], str]]
    left_out: int


def layer_table(record: RunRecord, layers: Mapping[str, np.ndarray]) -> LayerTable:
    """Return the layers of a run, sorted by how odd they are, then by their place in the model.

    Args:
        record: of the run.
        layers: statistics of the layers by name, [observations, sites].
    """
    curves = {name: layers[name] for name in _SHOWN if name in layers}
    labels, sites = site_labels(record.history.sites), record.history.sites
    odd: dict[int, tuple[float, list[str]]] = {index: (0.0, []) for index in range(len(sites))}
    for name, curve in curves.items():
        for site, value, median, distance in odd_layers(latest(curve), _chart_range(record, name)):
            words = (
                f"{name.replace('_', ' ')} far {'above' if value > median else 'below'} the others' {number(median)}"
            )
            odd[site] = max(odd[site][0], distance), [*odd[site][1], words]
    for finding in record.diagnosis.findings:
        kind, weight = finding.kind.value.replace("_", " "), 1.0 if finding.is_note else 1e3
        for index, name in enumerate(sites):
            if name in finding.sites:
                odd[index] = odd[index][0] + weight, [kind, *odd[index][1]]
    order = sorted(odd, key=lambda index: (-odd[index][0], index))[:_MOST_ROWS]
    rows = [
        (labels[index], sites[index], [_change(curve[:, index]) for curve in curves.values()], ", ".join(odd[index][1]))
        for index in order
    ]
    return LayerTable([name.replace("_", " ") for name in curves], rows, len(sites) - len(rows))


def _chart_range(record: RunRecord, name: str) -> Callable[[np.ndarray], tuple[float, float]]:
    statistic = record.history.statistics.get(name)
    return _range if statistic is None else statistic.chart_range


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(np.nanmin(values)), float(np.nanmax(values))


def coverage_rows(record: RunRecord) -> list[tuple[str, str]]:
    """Return the sites that are not observed, each with the reason."""
    return [(site, reason) for site, reason in record.history.coverage.items() if not is_observed(reason)]


def _change(curve: np.ndarray) -> str:
    known = curve[np.isfinite(curve)]
    return f"{number(known[0])} → {number(known[-1])}" if len(known) else "–"


def number(value: float) -> str:
    """Return a number with three significant digits; a dash for nan."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 or value == 0 else f"{value:#.3g}"
