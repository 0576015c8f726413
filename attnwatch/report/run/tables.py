"""Tables of the run page."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from attnwatch.capture import is_observed
from attnwatch.dashboard.odd_layers import odd_layers
from attnwatch.diagnosis import latest
from attnwatch.runs import RunEvent, RunRecord
from attnwatch.runs.record import NUM_AVERAGED_LOSSES
from attnwatch.utils.labels import site_labels

_MOST_ROWS = 128
# Most findings, and most events, that are marked on the timeline.
MOST_MARKS = 300
_SHOWN = ("normalized_entropy", "max_logit", "sink_mass", "gradient_norm", "weight_norm", "update_ratio")


@dataclass(frozen=True)
class LayerTable:
    """Layers of a run, odd ones first.

    Attributes:
        columns: names of the columns.
        rows: label, module, cells as "first → latest", and oddities of each layer.
        left_out: number of layers that are not shown.
    """

    columns: list[str]
    rows: list[tuple[str, str, list[str], str]]
    left_out: int


def layer_table(record: RunRecord, layers: Mapping[str, np.ndarray]) -> LayerTable:
    """Return the layers of a run, the oddest first, then in model order.

    Args:
        record: record of the run.
        layers: statistics of the layers by name, [observations, sites].
    """
    curves = {name: layers[name] for name in _SHOWN if name in layers}
    labels, sites = site_labels(record.history.sites), record.history.sites
    odd: dict[int, tuple[float, list[str]]] = {index: (0.0, []) for index in range(len(sites))}
    for name, curve in curves.items():
        for site, value, median, distance in odd_layers(latest(curve), _chart_range(record, name)):
            words = (
                f"{name.replace('_', ' ')} far {'above' if value > median else 'below'} the median of {number(median)}"
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
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


@dataclass(frozen=True)
class EventTable:
    """Events of one kind that carry numbers, such as cuts.

    Attributes:
        kind: kind of the events.
        columns: names of the columns after the step and the label.
        rows: index among all events of the run, event and cells of each row.
    """

    kind: str
    columns: list[str]
    rows: list[tuple[int, RunEvent, list[str]]]


def event_tables(record: RunRecord) -> list[EventTable]:
    """Return a table of events with numbers for each kind, with the loss before and after each event."""
    kinds: dict[str, list[int]] = {}
    for index, event in enumerate(record.events[:MOST_MARKS]):
        if event.details:
            kinds.setdefault(event.kind, []).append(index)
    return [_event_table(record, kind, indices) for kind, indices in kinds.items()]


def other_events(record: RunRecord) -> list[tuple[int, RunEvent]]:
    """Return the events that are in no table, with their indices among all events."""
    return [(index, event) for index, event in enumerate(record.events[:MOST_MARKS]) if not event.details]


def _event_table(record: RunRecord, kind: str, indices: list[int]) -> EventTable:
    events = record.events
    names = list(dict.fromkeys(name for index in indices for name in events[index].details))
    rows = [(index, events[index], _event_cells(record, events[index], names)) for index in indices]
    return EventTable(kind, [*names, "loss before", "loss after"], rows)


def _event_cells(record: RunRecord, event: RunEvent, names: list[str]) -> list[str]:
    values = [event.details.get(name, math.nan) for name in names]
    is_after, loss = record.history.steps >= event.step, record.history.loss
    around = loss[~is_after][-NUM_AVERAGED_LOSSES:], loss[is_after][:NUM_AVERAGED_LOSSES]
    means = [float(each[np.isfinite(each)].mean()) if np.isfinite(each).any() else math.nan for each in around]
    return [each if isinstance(each, str) else number(each) for each in [*values, *means]]


def coverage_rows(record: RunRecord) -> list[tuple[str, str]]:
    """Return the sites that are not observed, each with the reason."""
    return [(site, reason) for site, reason in record.history.coverage.items() if not is_observed(reason)]


def _change(curve: np.ndarray) -> str:
    known = curve[np.isfinite(curve)]
    return f"{number(known[0])} → {number(known[-1])}" if len(known) else "–"


def number(value: float) -> str:
    """Format a number with three significant digits, or with all of them if it is whole; nan becomes a dash."""
    if math.isnan(value):
        return "–"
    is_whole = float(value).is_integer() or abs(value) >= 100
    return f"{value:,.0f}" if is_whole and abs(value) < 1e6 else f"{value:#.3g}"
