"""Logs of Lightning's CSVLogger."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from attnwatch.plugins import register
from attnwatch.runs.logged import Points, logged_run
from attnwatch.runs.readers.base import RunReader
from attnwatch.runs.record import RunRecord
from attnwatch.utils.files import UnreadableFileError

_FILE = "metrics.csv"
_STEP = "step"


@register
class CSVReader(RunReader):
    """Reader of `metrics.csv` from Lightning's CSVLogger, or of its folder, also if another program saved it again.

    Cells may be empty.
    """

    name = "csv"
    title = "Lightning CSVLogger table"
    gives = "the same as from TensorBoard"
    precedence = 3

    def find(self, path: Path) -> Sequence[Path]:
        file = path / _FILE if path.is_dir() else path
        return [file] if file.suffix.lower() == ".csv" and file.is_file() else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        points = Points()
        with open(place, encoding="utf-8-sig", newline="") as stream:
            try:
                _read(stream, points)
            except (csv.Error, UnicodeDecodeError) as error:
                raise UnreadableFileError(f"is not a table in UTF-8 ({error})") from error
        return logged_run(_name(place), points.curves(), source=self.title, loss_tag=loss_tag)


def _name(file: Path) -> str:
    return file.absolute().parent.name if file.name == _FILE else file.stem


def _read(stream: TextIO, points: Points) -> None:
    rows = csv.reader(_whole_lines(stream), strict=True)
    names = [name.strip() for name in next(rows, [])]
    if _STEP not in names or len({*names}) < len(names):
        raise UnreadableFileError(f"is not a log: its first line must have distinct column names, one of them {_STEP}")
    step_column = names.index(_STEP)
    for row in rows:
        if not row or row[step_column : step_column + 1] == [_STEP]:  # an empty line, or another line of names
            continue
        if len(row) != len(names):
            raise UnreadableFileError(f"is damaged: line {rows.line_num} has {len(row)} cells, not {len(names)}")
        try:
            step = _whole(row[step_column])
            for name, cell in zip(names, row, strict=True):
                if cell and name != _STEP:
                    points.add(name, step, float(cell))
        except ValueError as error:
            raise UnreadableFileError(
                f"is damaged: line {rows.line_num} has a cell that is not a number ({error})"
            ) from error


def _whole(cell: str) -> int:
    """Return the step in a cell; pandas saves 7 as 7.0 where another cell of the column was empty."""
    try:
        return int(cell)
    except ValueError:
        if not float(cell).is_integer():
            raise
        return int(float(cell))


def _whole_lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines, except an incomplete last one that is still being written."""
    for line in stream:
        if line.endswith("\n"):
            yield line
