"""TensorBoard logs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnwatch.plugins import register
from attnwatch.runs.event_files import read_events
from attnwatch.runs.logged import Points, logged_run
from attnwatch.runs.readers.base import RunReader
from attnwatch.runs.record import RunRecord

if TYPE_CHECKING:
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

_FILES = "*tfevents*"
_SCALARS = "scalars"


@register
class TensorBoardReader(RunReader):
    """Reader of a folder with the event files of one run, or of one such file."""

    name = "tensorboard"
    title = "TensorBoard log"
    gives = "the curves of at most `max_layer_curves` layers, and those of the whole model; the loss; other scalars"
    precedence = 2

    def find(self, path: Path) -> Sequence[Path]:
        return [path] if _event_files(path) else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        points, tags_of_tensors = Points(), set[str]()
        for file in _event_files(place):
            for event in read_events(file):
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        points.add(value.tag, event.step, value.simple_value)
                    if value.metadata.plugin_data.plugin_name == _SCALARS:  # of a tag's first value, at least
                        tags_of_tensors.add(value.tag)
                    if value.HasField("tensor") and value.tag in tags_of_tensors:
                        points.add(value.tag, event.step, _number(value.tensor))
        name = place.name if place.is_dir() else place.parent.name
        return logged_run(name, points.curves(), source=self.title, loss_tag=loss_tag)


def _number(tensor: "TensorProto") -> float:
    """Return a number as TensorFlow writes it, and `add_scalar(…, new_style=True)`."""
    from tensorboard.util.tensor_util import make_ndarray

    return float(make_ndarray(tensor).item())


def _event_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.glob(_FILES) if file.is_file())
    return [path] if path.match(_FILES) and path.is_file() else []
