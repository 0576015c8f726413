"""Weights & Biases runs on disk."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnwatch.plugins import register
from attnwatch.runs.logged import Points, as_text, logged_run, step_of
from attnwatch.runs.readers.base import RunReader
from attnwatch.runs.record import RunRecord
from attnwatch.runs.wandb_file import read_wandb_records
from attnwatch.utils.files import parse_json

_FILES = "run-*.wandb"
_TYPE = "/_type"


@register
class WandbReader(RunReader):
    """Reader of a W&B run folder, `wandb/offline-run-…` or `wandb/run-…`, or of the file in it. Needs wandb."""

    name = "wandb"
    title = "W&B run"
    gives = "the same as from TensorBoard, and the run's configuration"
    precedence = 4

    def find(self, path: Path) -> Sequence[Path]:
        if path.is_dir():
            return sorted(file for file in path.glob(_FILES) if file.is_file())
        return [path] if path.suffix == ".wandb" and path.is_file() else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        points, name, settings = Points(), place.stem, dict[str, str]()
        for record in read_wandb_records(place):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = _row(record.history.item)
                step = step_of(row, otherwise=record.history.step.num)
                points.add_row(step, {tag: row[tag] for tag in row if not tag.startswith("_")})
            elif kind == "run":
                name = record.run.display_name or record.run.run_id or name
                settings |= _texts(record.run.config.update)
            elif kind == "config":
                settings |= _texts(record.config.update)
        return logged_run(name, points.curves(), source=self.title, loss_tag=loss_tag, settings=settings)


def _row(items: Iterable[Any]) -> dict[str, Any]:
    """Return a row by tag, without images and other media, which have an entry `_type`."""
    row = {item.key or "/".join(item.nested_key): parse_json(item.value_json) for item in items}
    media = {tag.removesuffix(_TYPE) for tag in row if tag.endswith(_TYPE)}
    return {tag: value for tag, value in row.items() if tag.rpartition("/")[0] not in media}


def _texts(items: Iterable[Any]) -> Mapping[str, str]:
    return {name: as_text(value) for name, value in _row(items).items() if not name.startswith("_")}
