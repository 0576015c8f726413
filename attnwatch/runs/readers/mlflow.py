"""Runs in MLflow's file store."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from attnwatch.plugins import register
from attnwatch.runs.logged import Points, logged_run
from attnwatch.runs.readers.base import RunReader
from attnwatch.runs.record import RunRecord
from attnwatch.utils.files import UnreadableFileError, read_text

_METRICS, _PARAMS, _META = "metrics", "params", "meta.yaml"
_NAME = "tags/mlflow.runName"
_DATABASES = ("mlflow.db", "mlruns.db")


@register
class MLflowReader(RunReader):
    """Reader of a run folder in MLflow's file store, `mlruns/EXPERIMENT/RUN`. Databases are refused."""

    name = "mlflow"
    title = "MLflow run"
    gives = "the same as from TensorBoard, and the run's parameters"
    precedence = 4

    def find(self, path: Path) -> Sequence[Path]:
        is_run = (path / _META).is_file() and (path / _METRICS).is_dir()
        return [path] if is_run or (path.name in _DATABASES and path.is_file()) else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        if place.is_file():
            raise UnreadableFileError(
                "is an MLflow database; only the file store of MLflow (mlruns/EXPERIMENT/RUN) can be read. Judge the "
                "run by another log or by a checkpoint"
            )
        points = Points()
        for file in sorted(each for each in (place / _METRICS).rglob("*") if each.is_file()):
            tag = file.relative_to(place / _METRICS).as_posix()
            for step, value in _numbers(file):
                points.add(tag, step, value)
        settings = {key: read_text(place / _PARAMS / key) for key in _names(place / _PARAMS)}
        name = read_text(place / _NAME).strip() if (place / _NAME).is_file() else place.name
        return logged_run(name, points.curves(), source=self.title, loss_tag=loss_tag, settings=settings)


def _names(folder: Path) -> list[str]:
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())


def _numbers(file: Path) -> Iterator[tuple[int, float]]:
    """Yield the step and the value of each complete line, which holds time, value and sometimes the step."""
    with open(file, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith("\n"):  # still being written
                return
            parts = line.split(" ")
            with contextlib.suppress(ValueError, IndexError):
                yield int(parts[2]) if len(parts) > 2 else 0, float(parts[1])
                continue
            raise UnreadableFileError(f"is damaged: line {number} of {file.name!r} has no value or step: {line[:50]!r}")
