"""Signals of a run, compared with their range in sound runs, and the risk that follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.risk import RiskModel, default_risk_model
from attnwatch.diagnosis.signals import MIN_OBSERVATIONS, SIGNALS, evidence_in, signals_of
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.report.run.charts import COLOURS, GOOD, Figure, new_figure
from attnwatch.runs import RISK_CURVE, Curve, RunRecord
from attnwatch.utils.extras import extra_needed
from attnwatch.utils.labels import evenly_spaced

with extra_needed("report", "the run page"):
    from bokeh.models import ColumnDataSource, HoverTool, Range1d

_MOST_POINTS = 16


@dataclass(frozen=True)
class RiskCourse:
    """Signals and risk of a run over its steps.

    Attributes:
        steps: int64 [points], steps of the signals.
        signals: inputs of the risk model, float64 [points, signals].
        risk: risk logged during training, or else computed at `steps` by the current risk model.
    """

    steps: np.ndarray
    signals: np.ndarray
    risk: Curve


def risk_course(record: RunRecord) -> RiskCourse:
    """Return the risk of a run, and its signals at up to 16 observations, including the last."""
    history = record.history
    first = min(MIN_OBSERVATIONS, len(history))
    num_points = _MOST_POINTS if len(history) and history.sites else 0
    numbers = [first + index for index in evenly_spaced(len(history) - first + 1, num_points)]
    parts = [history.first(number) for number in numbers]
    signals = np.array([signals_of(part) for part in parts]).reshape(-1, len(SIGNALS))
    steps = np.array([int(history.steps[number - 1]) for number in numbers], dtype=np.int64)
    thresholds = Thresholds().of_budget(history.total_steps)
    risks = [
        _risk(evidence_in(each, part), history.share_over(int(step))) if thresholds.is_enough(part.steps) else np.nan
        for each, part, step in zip(signals, parts, steps, strict=True)
    ]
    return RiskCourse(steps, signals, record.curves.get(RISK_CURVE, Curve(steps, np.array(risks))))


def _risk(signals: np.ndarray, share: float | None) -> float:
    """Return the risk for these signals; nan if it is too early for the model."""
    model = default_risk_model()
    if np.isnan(signals).all() or (share is not None and share < model.shares[0]):
        return np.nan
    return float(model.risks(model.distances(signals[None], share))[0])


def signal_figures(record: RunRecord, course: RiskCourse) -> list[Figure]:
    """Return a small chart of each signal that is known, in front of its range in sound runs where that is known."""
    is_known = np.isfinite(course.signals).any(0)
    return [_chart(index, record, course) for index in range(len(SIGNALS)) if is_known[index]]


def _chart(index: int, record: RunRecord, course: RiskCourse) -> Figure:
    signal, model = SIGNALS[index], default_risk_model()
    made = new_figure(height=170, title=signal.title, tools="")
    made.min_border_left = 40
    band = _band(index, model, record)
    if band is not None:
        made.varea("step", "low", "high", source=ColumnDataSource(dict(band)), fill_color=GOOD, fill_alpha=0.18)
    source = ColumnDataSource({"step": course.steps, "value": course.signals[:, index]})
    line = made.line("step", "value", source=source, color=COLOURS[0], line_width=2)
    made.add_tools(
        HoverTool(tooltips=[("step", "@step{0,0}"), ("value", "@value{0.[00]}")], renderers=[line], mode="vline")
    )
    last = int(course.steps[-1]) if len(course.steps) else 1
    made.x_range = Range1d(start=0, end=max(last, 1) * 1.03)
    return made


def _band(index: int, model: RiskModel, record: RunRecord) -> Mapping[str, np.ndarray] | None:
    """Return the range of sound runs over the steps so far; None if the length of the run is unknown."""
    history = record.history
    share = history.share_over(int(history.steps[-1])) if len(history) else None
    if share is None or history.total_steps is None:
        return None
    shares = np.append(model.shares[model.shares < share], share)
    low, high = (np.interp(np.log(shares), np.log(model.shares), bound[:, index]) for bound in (model.low, model.high))
    return {"step": shares * history.total_steps, "low": low, "high": high}
