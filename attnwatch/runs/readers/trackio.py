"""Trackio runs in the database of their project."""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnwatch.plugins import register
from attnwatch.runs.logged import Points, as_text, logged_run, step_of
from attnwatch.runs.readers.base import RunReader
from attnwatch.runs.record import RunRecord
from attnwatch.utils.files import UnreadableFileError, parse_json

_SUFFIX = ".db"
_MAGIC = b"SQLite format 3\0"
_NONFINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@register
class TrackioReader(RunReader):
    """Reader of a run in the database of a trackio project: `PROJECT.db`, or `PROJECT.db/RUN` if it has several."""

    name = "trackio"
    title = "trackio run"
    gives = "the same as from TensorBoard, and the run's configuration"
    precedence = 4

    def find(self, path: Path) -> Sequence[Path]:
        if path.is_dir():
            return [place for file in sorted(path.glob(f"*{_SUFFIX}")) for place in self.find(file)]
        if _is_database(path):
            return _places(path)
        return [path] if _database_of(path) is not None else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        database = _database_of(place)
        if database is None:
            raise UnreadableFileError("is not a run in a trackio database")
        run, points = place.relative_to(database).as_posix(), Points()
        with _opened(database) as connection:
            of_run = f"WHERE {_key(connection)} = ? OR run_name = ?"
            if connection.execute(f"SELECT 1 FROM metrics {of_run}", (run, run)).fetchone() is None:
                raise UnreadableFileError(f"is not a run: {str(database)!r} has {', '.join(_names(connection))}")
            rows = connection.execute(f"SELECT step, metrics FROM metrics {of_run} ORDER BY id", (run, run))
            for step, metrics in rows:
                row = {
                    tag: _NONFINITE.get(value, value) if isinstance(value, str) else value
                    for tag, value in _row(metrics)
                }
                points.add_row(step_of(row, otherwise=step), row)
            has_configs = bool(connection.execute("PRAGMA table_info(configs)").fetchall())  # not in early versions
            query = f"SELECT config FROM configs {of_run}"
            configs = connection.execute(query, (run, run)).fetchall() if has_configs else []
        settings = {key: as_text(value) for config in configs for key, value in _row(*config) if key[:1] != "_"}
        return logged_run(run, points.curves(), source=self.title, loss_tag=loss_tag, settings=settings)


def _names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT DISTINCT run_name FROM metrics ORDER BY run_name LIMIT 20")]


def _row(text: str) -> Sequence[tuple[str, Any]]:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise UnreadableFileError("is damaged: a row of numbers is not a JSON object")
    return list(content.items())


def _is_database(path: Path) -> bool:
    if path.suffix != _SUFFIX or not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def _database_of(place: Path) -> Path | None:
    return next((each for each in place.parents if _is_database(each)), None)


def _places(database: Path) -> list[Path]:
    """Return a path for each run of a project; none if it is not a trackio database."""
    try:
        with _opened(database) as connection:
            rows = connection.execute(f"SELECT DISTINCT {_key(connection)}, run_name FROM metrics").fetchall()
    except UnreadableFileError:
        return []
    names = [name for _, name in rows]
    chosen = (name if key is None or (names.count(name) == 1 and _is_simple(name)) else key for key, name in rows)
    return sorted({database / each for each in chosen if each is not None})


def _is_simple(name: str | None) -> bool:
    return name is not None and name != "" and "/" not in name and name not in (".", "..")


def _key(connection: sqlite3.Connection) -> str:
    """Return the column that identifies a run; in older versions of trackio it was the name."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(metrics)")}
    return "run_id" if "run_id" in columns else "run_name"


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading."""
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(connection):
            yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"is not a trackio database, or is damaged ({error})") from error
