"""Tables of the run page."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from attnwatch.capture import is_observed
from attnwatch.diagnosis import latest
from attnwatch.runs import RunRecord
from attnwatch.utils.labels import site_labels

_MOST_ROWS = 128
# A layer is odd if it is so many times as far from the median layer as half of the layers are.
_ODD, _FEWEST_LAYERS = 6.0, 5
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
        for index, distance, words in _outliers(name, curve):
            odd[index] = max(odd[index][0], distance), [*odd[index][1], words]
    for finding in record.diagnosis.findings:
        for index, site in enumerate(sites):
            if site in finding.sites:
                found = finding.kind.value.replace("_", " ")
                odd[index] = odd[index][0] + (1.0 if finding.is_note else 1e3), [found, *odd[index][1]]
    order = sorted(odd, key=lambda index: (-odd[index][0], index))[:_MOST_ROWS]
    rows = [
        (labels[index], sites[index], [_change(curve[:, index]) for curve in curves.values()], ", ".join(odd[index][1]))
        for index in order
    ]
    return LayerTable([name.replace("_", " ") for name in curves], rows, len(sites) - len(rows))


def _outliers(name: str, curve: np.ndarray) -> Iterator[tuple[int, float, str]]:
    """Yield the layers whose latest number is far from the others': index, distance, and words."""
    now = latest(curve)
    known = np.isfinite(now)
    if known.sum() < _FEWEST_LAYERS:
        return
    median = float(np.median(now[known]))
    spread = float(np.median(np.abs(now[known] - median))) + 0.02 * abs(median) + 1e-12
    for index in np.flatnonzero(known):
        distance = (float(now[index]) - median) / spread
        if abs(distance) >= _ODD:
            side = "above" if distance > 0 else "below"
            yield int(index), abs(distance), f"{name.replace('_', ' ')} far {side} the others' {number(median)}"


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
