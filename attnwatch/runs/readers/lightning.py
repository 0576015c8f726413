"""Lightning checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from attnwatch.plugins import register
from attnwatch.runs.monitor_state import load_checkpoint, monitor_states, run_of_state
from attnwatch.runs.readers.base import RunReader, refuse_loss_tag
from attnwatch.runs.record import RunRecord
from attnwatch.utils.files import UnreadableFileError

_SUFFIX = ".ckpt"


@register
class LightningCheckpointReader(RunReader):
    """Reader of Lightning checkpoints: of a file, or of the newest one in a folder."""

    name = "lightning"
    title = "Lightning checkpoint"
    gives = "everything that an AttentionMonitor recorded, for every head, and what the checkup found"
    precedence = 6

    def find(self, path: Path) -> Sequence[Path]:
        if path.is_dir():
            files = [file for file in path.glob(f"*{_SUFFIX}") if file.is_file()]
            return [max(files, key=lambda file: (file.stat().st_mtime_ns, file.name))] if files else []
        return [path] if path.suffix == _SUFFIX and path.is_file() else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        refuse_loss_tag(place, loss_tag)
        content = load_checkpoint(place)
        states = monitor_states(content.get("callbacks") if isinstance(content, Mapping) else None)
        if not states:
            raise UnreadableFileError(
                "has no AttentionMonitor state: give the log of the run, or add a monitor to the callbacks"
            )
        return run_of_state(place.name, states[0], source=self.title)
