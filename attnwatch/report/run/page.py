"""Run page: everything known about one run, or about several side by side, as one HTML file."""

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnwatch.diagnosis import Finding
from attnwatch.errors import ConfigurationError
from attnwatch.report.rendering import render, visible
from attnwatch.report.replacing import require_no_other_file
from attnwatch.report.run.charts import as_json
from attnwatch.report.run.comparison import first_differences
from attnwatch.report.run.grids import Grids, grid_figures, grids_of
from attnwatch.report.run.packing import PackedArrays, pack, pack_text, packed_bokeh
from attnwatch.report.run.signals import risk_course, signal_figures
from attnwatch.report.run.tables import (
    MOST_MARKS,
    coverage_rows,
    event_tables,
    layer_table,
    number,
    other_events,
)
from attnwatch.report.run.timeline import marks_of, timeline
from attnwatch.report.run.verdict import verdict_of
from attnwatch.runs import RunRecord
from attnwatch.runs.record import loss_at_ends, of_possible_length
from attnwatch.utils.files import replaced_file
from attnwatch.utils.messages import counted


def write_run_page(records: Sequence[RunRecord], path: str | os.PathLike[str]) -> None:
    """Write a page about one or more runs. An existing page is replaced only once the new one is complete.

    Args:
        records: runs in display order.
        path: path of the page.

    Raises:
        ConfigurationError: there is no run, or the path is a folder, is a file that is not a page, or lies in a folder
            that does not exist.
        ImportError: bokeh or jinja2 is missing.
        OSError: the file can't be written.
    """
    out = Path(path)
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else "lies in a folder that does not exist"
        raise ConfigurationError(f"`path`: {str(out)!r} {what}; give the path of a file to write.")
    require_no_other_file(out, argument="path")
    content = run_page(records).encode()
    with replaced_file(out) as stream:
        stream.write(content)


def run_page(records: Sequence[RunRecord]) -> str:
    """Return the HTML of the page about one or more runs.

    Raises:
        ConfigurationError: there is no run.
        ImportError: bokeh or jinja2 is missing.
    """
    if not records:
        raise ConfigurationError("`records` must contain at least one run.")
    records = _told_apart([of_possible_length(record) for record in records])
    courses = [risk_course(record) for record in records]
    items = [as_json(timeline(records, courses), "timeline")]
    runs = []
    for index, (record, course) in enumerate(zip(records, courses, strict=True)):
        has_signals = bool(len(record.history) and record.history.sites)
        signals = signal_figures(record, course) if has_signals else []
        items += [as_json(each, f"signal-{index}-{number}") for number, each in enumerate(signals)]
        grids = grids_of(record.history, share=1 / len(records))
        if grids.statistics:
            layers, heads = grid_figures(record.history)
            items += [as_json(layers, f"layers-{index}"), as_json(heads, f"heads-{index}")]
        runs.append(_run(record, grids) | {"num_signals": len(signals)})
    packed = [pack(run["grids"].arrays) for run in runs]
    data = {"items": items, "runs": [_data(run, each) for run, each in zip(runs, packed, strict=True)]}
    return render(
        "run_page.html.jinja",
        title=" / ".join(record.name for record in records),
        written=datetime.datetime.now().isoformat(" ", "minutes"),
        runs=runs,
        differences=first_differences(records),
        bokeh=packed_bokeh(),
        data=pack_text(json.dumps(data)),
        arrays=[each.content for each in packed],
    )


def _told_apart(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the records with names that are distinct: those of Lightning's runs are often "version_0"."""
    if len({record.name for record in records}) == len(records):
        return list(records)
    return [replace(record, name=f"{number}: {record.name}") for number, record in enumerate(records, start=1)]


def _run(record: RunRecord, grids: Grids) -> dict[str, Any]:
    """Return the variables of the template for one run."""
    diagnosis = record.diagnosis
    return {
        "record": record,
        "verdict": verdict_of(record),
        "summary": _summary(record),
        "findings": _findings(record),
        "more_findings": max(len(diagnosis.findings) - MOST_MARKS, 0),
        "other_events": other_events(record),
        "event_tables": event_tables(record),
        "more_events": max(len(record.events) - MOST_MARKS, 0),
        "grids": grids,
        "layers": layer_table(record, grids.layers),
        "coverage": coverage_rows(record),
        "number_of_marks": len(marks_of(record)),
        "sound_checks": [name for name, result in record.checkup.items() if result == "ok"],
        "other_checks": [(name, result) for name, result in record.checkup.items() if result != "ok"],
    }


def _findings(record: RunRecord) -> list[dict[str, Any]]:
    """Return the variables for each finding; causes that an earlier one has too are not repeated."""
    findings = [_finding(finding, record) for finding in record.diagnosis.findings[:MOST_MARKS]]
    shown: set[tuple[str, ...]] = set()
    for each in findings:
        causes = tuple(each["causes"])
        each["has_causes_of_above"] = causes in shown
        shown |= {causes} if causes else set()
    return findings


def _finding(finding: Finding, record: RunRecord) -> dict[str, Any]:
    return {
        "kind": finding.kind.value.replace("_", " "),
        "is_note": finding.is_note,
        "is_fact": record.is_from_checkup(finding),
        "step": finding.step,
        "fault": finding.what,
        "advice": finding.advice,
        "sites": finding.sites,
        "evidence": {name.replace("_", " "): number(value) for name, value in finding.evidence.items()},
        "causes": finding.cause_lines,
        "causes_title": finding.causes_title,
    }


def _summary(record: RunRecord) -> str:
    history = record.history
    if not len(history):
        return "nothing was observed"
    steps = counted(int(history.steps[-1]) + 1, "step")
    total = f" of {history.total_steps:,}" if history.total_steps else ""
    ends = loss_at_ends(history)
    of_loss = f"; loss {number(ends[0])} → {number(ends[1])}" if ends is not None else ""
    of_what = f"{counted(len(history), 'observation')} of {counted(len(history.sites), 'attention layer')}"
    return f"{steps}{total}; {of_what}{of_loss}"


def _data(run: dict[str, Any], packed: PackedArrays) -> dict[str, Any]:
    """Return the data of one run for the page's script."""
    history, grids = run["record"].history, run["grids"]
    return {
        "places": packed.places,
        "size": packed.size,
        "statistics": grids.statistics,
        "shown": grids.shown,
        "steps": history.steps.tolist(),
        "sites": [visible(site) for site in history.sites],
    }
