"""Timeline of a run: loss, risk, learning rate, metrics and events on one axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.risk import default_risk_model
from attnwatch.report.run.charts import BAD, COLOURS, GOOD, INK, WATCH, Figure, new_figure, plain
from attnwatch.report.run.signals import RiskCourse
from attnwatch.report.run.tables import MOST_MARKS
from attnwatch.runs import RATE_CURVE, Curve, RunRecord
from attnwatch.utils.extras import extra_needed

with extra_needed("report", "the run page"):
    from bokeh.layouts import column
    from bokeh.models import (
        BasicTicker,
        Column,
        ColumnDataSource,
        FactorRange,
        HoverTool,
        PrintfTickFormatter,
        Range1d,
        TapTool,
    )
    from bokeh.models.annotations import Legend, LegendItem, Span
    from bokeh.models.renderers import GlyphRenderer

_MOST_METRICS = 4
# Name prefixes of metrics on held-out data, and name suffixes of speed metrics.
_MEASURED = ("eval", "val", "test", "valid")
_SPEEDS = ("_runtime", "_per_second")


@dataclass(frozen=True)
class Mark:
    """Mark on the timeline.

    Attributes:
        step: step of the mark.
        lane: row of the mark, such as "findings" or "heads".
        label: a few words.
        text: sentences shown in the tooltip.
        anchor: id of the page element with the evidence.
        tone: "bad", "watch", "good" or "plain".
    """

    step: int
    lane: str
    label: str
    text: str
    anchor: str
    tone: str = "plain"


_TONES = {"bad": BAD, "watch": WATCH, "good": GOOD, "plain": INK}


def marks_of(record: RunRecord) -> list[Mark]:
    """Return the findings and events of a run in order of steps; at most `MOST_MARKS`."""
    marks = []
    for number, finding in enumerate(record.diagnosis.findings[:MOST_MARKS]):
        lane = "checkup" if record.is_from_checkup(finding) else "findings"
        tone = "watch" if finding.is_note else "bad"
        label = finding.kind.value.replace("_", " ")
        marks.append(Mark(finding.step, lane, label, finding.headline, f"finding-{number}", tone))
    for number, event in enumerate(record.events[:MOST_MARKS]):
        marks.append(Mark(event.step, event.kind, event.label, event.text or event.label, f"event-{number}"))
    return sorted(marks, key=lambda mark: mark.step)[:MOST_MARKS]


def timeline(records: Sequence[RunRecord], courses: Sequence[RiskCourse]) -> Column:
    """Return the timeline of one run, or of several on the same axis.

    Args:
        records: runs; for several, only the loss, the risk and the learning rate are shown.
        courses: risk of each run.
    """
    last = max([*(int(record.history.steps[-1]) for record in records if len(record.history)), 1])
    steps = Range1d(start=-0.015 * last, end=last * 1.02, bounds=(-0.1 * last, last * 1.1))
    names = [plain(record.name) for record in records]
    losses = [Curve(record.history.steps, record.history.loss) for record in records]
    figures = [_curves("loss", losses, names, steps, height=190)]
    figures.append(_risk(courses, names, steps))
    rates = [record.curves.get(RATE_CURVE) for record in records]
    if any(rate is not None for rate in rates):
        figures.append(_curves("learning rate", [rate or _NOTHING for rate in rates], names, steps, height=120))
        figures[-1].yaxis.formatter = PrintfTickFormatter(format="%.1e")
    if len(records) == 1:
        measured = [(name, curve) for name, curve in records[0].curves.items() if name.startswith(_MEASURED)]
        shown = [(name, curve) for name, curve in measured if not name.endswith(_SPEEDS)][:_MOST_METRICS]
        figures += [_curves(name, [curve], names, steps, height=120) for name, curve in shown]
        if marks := marks_of(records[0]):
            figures.append(_lanes(marks, steps))
            for each in figures[:-1]:
                _draw_changes(each, marks)
    for each in figures[:-1]:
        each.xaxis.major_label_text_font_size = "0px"
    figures[-1].xaxis.axis_label = "step"
    if len(records) > 1:
        _draw_legend(figures[0])
    return column(*figures, sizing_mode="stretch_width", name="timeline")


_NOTHING = Curve(np.empty(0, dtype=np.int64), np.empty(0))


def _curves(title: str, curves: Sequence[Curve], names: Sequence[str], steps: Range1d, *, height: int) -> Figure:
    """Draw one curve for each run, with gaps where values are not finite."""
    made = new_figure(height=height, y_name=title, x_range=steps)
    made.yaxis.ticker = BasicTicker(desired_num_ticks=max(height // 30, 2))
    for curve, name, colour in zip(curves, names, _colours(len(curves)), strict=True):
        finite = np.where(np.isfinite(curve.values), curve.values, np.nan)
        source = ColumnDataSource({"step": curve.steps, "value": finite, "run": [name] * len(curve.steps)})
        made.line("step", "value", source=source, color=colour, line_width=1.8, name=name)
        if len(curve.steps) < 3:
            made.scatter("step", "value", source=source, color=colour, size=6)
    which = [("run", "@run")] if len(names) > 1 else []
    shown = [*which, ("step", "@step{0,0}"), (title, "@value{%.4g}")]
    made.add_tools(HoverTool(tooltips=shown, formatters={"@value": "printf"}, mode="vline"))
    level = _constant(curves)
    if level is not None:  # Bokeh's own range would be from -1 to 1
        made.y_range = Range1d(start=level - (abs(level) or 1.0), end=level + (abs(level) or 1.0))
    return made


def _constant(curves: Sequence[Curve]) -> float | None:
    """Return the value that all curves have everywhere; None if they have several."""
    values = np.concatenate([curve.values for curve in curves])
    values = values[np.isfinite(values)]
    is_constant = len(values) > 0 and np.ptp(values) <= 1e-9 * np.abs(values).max()
    return float(values[0]) if is_constant else None


def _risk(courses: Sequence[RiskCourse], names: Sequence[str], steps: Range1d) -> Figure:
    made = _curves("risk", [course.risk for course in courses], names, steps, height=110)
    made.y_range = Range1d(start=-0.03, end=1.03)
    flag_at = default_risk_model().flag_at
    made.add_layout(Span(location=flag_at, dimension="width", line_color=BAD, line_dash="dashed", line_width=1))
    return made


def _colours(number: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(number)]


def _lanes(marks: Sequence[Mark], steps: Range1d) -> Figure:
    """Draw the marks, one row for each kind; a click on a mark leads to its evidence."""
    lanes = list(dict.fromkeys(mark.lane for mark in marks))[::-1]
    made = new_figure(
        height=56 + 24 * len(lanes),
        x_range=steps,
        y_range=FactorRange(factors=[plain(lane) for lane in lanes]),
        name="event figure",
    )
    columns = {
        "step": [mark.step for mark in marks],
        "lane": [plain(mark.lane) for mark in marks],
        "label": [plain(mark.label) for mark in marks],
        "text": [plain(mark.text) for mark in marks],
        "anchor": [mark.anchor for mark in marks],
        "colour": [_TONES[mark.tone] for mark in marks],
    }
    drawn = made.scatter(
        "step", "lane", source=ColumnDataSource(columns, name="events marks"), marker="diamond", size=13, color="colour"
    )
    made.add_tools(
        HoverTool(tooltips='<div style="max-width:30em">step @step{0,0}: @text</div>', renderers=[drawn]),
        TapTool(renderers=[drawn]),
    )
    made.ygrid.grid_line_color = None
    return made


def _draw_changes(made: Figure, marks: Sequence[Mark]) -> None:
    """Draw a vertical line at each mark."""
    for step, tone in {mark.step: mark.tone for mark in marks}.items():
        made.add_layout(
            Span(location=step, dimension="height", line_color=_TONES[tone], line_dash="dotted", line_alpha=0.7)
        )


def _draw_legend(made: Figure) -> None:
    lines = [each for each in made.renderers if isinstance(each, GlyphRenderer) and each.name]
    legend = Legend(items=[LegendItem(label=line.name, renderers=[line]) for line in lines], orientation="horizontal")
    legend.label_text_color = INK
    legend.background_fill_alpha = legend.border_line_alpha = 0.0
    made.add_layout(legend, "above")
