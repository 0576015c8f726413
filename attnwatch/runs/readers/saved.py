"""Files of `AttentionHistory.save` and `RunRecord.save`."""

from collections.abc import Sequence
from pathlib import Path

from attnwatch.plugins import register
from attnwatch.runs.readers.base import RunReader, refuse_loss_tag
from attnwatch.runs.record import RunRecord, is_saved_run

_SUFFIX = ".npz"


@register
class SavedRunReader(RunReader):
    """Reader of files that `AttentionHistory.save` or `RunRecord.save` wrote."""

    name = "saved"
    title = "saved history"
    gives = "everything that was recorded, for every head"
    precedence = 0

    def find(self, path: Path) -> Sequence[Path]:
        if path.is_dir():
            return [file for file in sorted(path.glob(f"*{_SUFFIX}")) if is_saved_run(file)]
        return [path] if path.is_file() and (path.suffix == _SUFFIX or is_saved_run(path)) else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        refuse_loss_tag(place, loss_tag)
        return RunRecord.load(place)
