"""Record of a training in progress, and the page about it beside the logs."""

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnwatch.callbacks.checkup import RunCheckup
from attnwatch.diagnosis import Diagnosis
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory
from attnwatch.runs import RATE_CURVE, RISK_CURVE, Curve, RunEvent, RunRecord
from attnwatch.runs.environment import environment
from attnwatch.runs.record import is_saved_run
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.messages import NonFatal, duration

PAGE_NAME = "attnwatch-run.html"
_RECORD_SUFFIX = ".npz"
_SHARE_OF_TIME = 0.003
# Seconds before the first page, unless something is found. A page takes about 1 s, including the import of Bokeh.
_SECONDS_BEFORE_FIRST = 300.0
_MOST_POINTS = 2048


class RunReport:
    """Page about one training, rewritten while it runs, and a file with the same data beside it.

    A failure to write the page causes one warning.

    Args:
        report: True for a page in the trainer's folder, False for none, or the path of the page.
        settings: arguments of the monitor by name, as text.

    Attributes:
        path: path of the page; None if there is none.

    Raises:
        ConfigurationError: `report` is neither a bool nor a path, or it is the path of the record.
    """

    def __init__(self, report: bool | str | os.PathLike[str], settings: Mapping[str, str]):
        if not isinstance(report, bool | str | os.PathLike) or report == "":
            raise ConfigurationError(f"`report` must be True, False or the path of the page to write; got {report!r}.")
        if not isinstance(report, bool) and Path(report).suffix == _RECORD_SUFFIX:
            raise ConfigurationError(
                f"`report` is the path of the page, and the record is written beside it as {_RECORD_SUFFIX}; got "
                f"{report!r}; give a path that ends in .html."
            )
        self._report, self._settings = report if isinstance(report, bool) else Path(report).absolute(), dict(settings)
        self.restart()

    def restart(self) -> None:
        """Begin anew, for another training."""
        self.path: Path | None = None
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self._events: list[RunEvent] = []
        self._environment: dict[str, str] = {}
        self._began = time.monotonic()
        self._next_time = self._began + _SECONDS_BEFORE_FIRST
        self._seconds_watching = 0.0
        self._non_fatal = NonFatal()

    def start(self, run: TrainerRun) -> None:
        """Determine the path of the page, and whether it can be drawn."""
        self._environment = environment(run.model)
        if self._report is False or run.is_dry_run or not run.is_main_process:
            return
        folder = run.folder if isinstance(self._report, bool) else self._report.parent
        try:
            import attnwatch.report.run  # noqa: F401
        except ImportError as error:
            run.inform(f"no page is written about this run (`report`): {error}")
            return
        if folder is not None:
            self.path = folder / PAGE_NAME if isinstance(self._report, bool) else self._report

    def resume(self, step: int) -> None:
        """Record that the training was resumed."""
        self._events.append(RunEvent(step, "resume", "resumed", f"The training was resumed after step {step}."))

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        """Return a context whose duration counts as the monitor's time."""
        begin = time.perf_counter()
        yield
        self._seconds_watching += time.perf_counter() - begin

    def note(self, run: TrainerRun, diagnosis: Diagnosis) -> None:
        """Record the risk, the learning rate and the trainer's metrics at a verdict."""
        self._add(RISK_CURVE, diagnosis.step, diagnosis.risk)
        self._add(RATE_CURVE, diagnosis.step, run.learning_rate)
        self.note_metrics(run, diagnosis.step)

    def note_metrics(self, run: TrainerRun, step: int) -> None:
        """Record the trainer's metrics that have changed since they were last recorded."""
        for name, value in run.metric_values.items():
            known = self._curves.get(name)
            if not name.startswith("attention/") and not (known and known[-1][1] == value):
                self._add(name, step, value)

    def _add(self, name: str, step: int, number: float) -> None:
        points = self._curves.setdefault(name, [])
        if math.isfinite(number) and not (points and points[-1][0] >= step):
            points.append((step, number))
        if len(points) > _MOST_POINTS:
            del points[1::2]

    def record(
        self, run: TrainerRun, history: AttentionHistory, diagnosis: Diagnosis, checkup: RunCheckup
    ) -> RunRecord:
        """Return everything known about the training."""
        events = [*self._events, *run.events]
        checked = checkup.checkup
        seconds = time.monotonic() - self._began
        cost = f"{self._seconds_watching / max(seconds, 1e-9):.2%} of {duration(seconds)}"
        return RunRecord(
            type(run.model).__name__ if self.path is None else _name_of(self.path.absolute().parent),
            history,
            curves={name: _curve(points) for name, points in self._curves.items() if points},
            events=tuple(sorted(events, key=lambda event: event.step)),
            checked=tuple(checkup.findings),
            ruled_out=checkup.ruled_out,
            checkup={} if checked is None else checked.results,
            settings={**self._settings, **{name: str(value) for name, value in run.hyperparameters.items()}},
            environment={**self._environment, "time in the monitor's hooks": cost},
            outcomes=_outcomes(run),
            remarks=tuple(run.remarks),
            judged=diagnosis,
        )

    def write_if_due(
        self, run: TrainerRun, history: AttentionHistory, diagnosis: Diagnosis, checkup: RunCheckup, *, is_news: bool
    ) -> None:
        """Write the page if that takes a small enough share of the training's time, or if there is news.

        Args:
            run, history, diagnosis, checkup: see `record`.
            is_news: True if a new finding justifies the time.
        """
        if self.path is not None and (is_news or time.monotonic() >= self._next_time):
            self._write(self.record(run, history, diagnosis, checkup), with_file=False)

    def write(self, run: TrainerRun, history: AttentionHistory, diagnosis: Diagnosis, checkup: RunCheckup) -> None:
        """Write the page and the record file at the end of a training."""
        if self.path is not None:
            self._write(self.record(run, history, diagnosis, checkup), with_file=True)

    def _write(self, record: RunRecord, *, with_file: bool) -> None:
        from attnwatch.report.run import write_run_page

        if self.path is None or self._non_fatal.has_failed("page"):
            return
        begin = time.monotonic()
        with self._non_fatal(f"`report`: the page {str(self.path)!r} is not written", key="page"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_run_page([record], self.path)
            if with_file:
                _save(record, self.path.with_suffix(_RECORD_SUFFIX))
        end = time.monotonic()
        self._next_time = end + (end - begin) / _SHARE_OF_TIME

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded curves and events as numbers and strings."""
        events = [
            {"step": each.step, "kind": each.kind, "label": each.label, "text": each.text} for each in self._events
        ]
        return {
            "curves": {name: [list(point) for point in points] for name, points in self._curves.items()},
            "events": events,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what `state_dict` returned."""
        self._curves = {
            name: [(int(step), float(value)) for step, value in points] for name, points in state["curves"].items()
        }
        self._events = [RunEvent(**event) for event in state["events"]]


def _save(record: RunRecord, path: Path) -> None:
    if path.is_file() and not is_saved_run(path):
        raise ConfigurationError(
            f"{str(path)!r} is not a record of a run, so it is not replaced; give another path for the page"
        )
    record.save(path)


def _outcomes(run: TrainerRun) -> tuple[str, ...]:
    """Return the descriptions of the callbacks that have changed the model, each after its name."""
    changed = [part for part in run.parts if part.events]
    names = (" ".join([type(part).__name__, *map(str, part.distinguished_by.values())]) for part in changed)
    return tuple(f"{name}: {part.description}." for name, part in zip(names, changed, strict=True))


def _name_of(folder: Path) -> str:
    """Return the name of a folder, preceded by its parent's if it is just a number, as in "demo/version_0"."""
    return "/".join(folder.parts[-2:] if re.fullmatch(r"[a-z]*[-_]?\d+", folder.name) else folder.parts[-1:])


def _curve(points: list[tuple[int, float]]) -> Curve:
    steps, values = zip(*points, strict=True)
    return Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))
