"""Pictures and words for a TensorBoard `SummaryWriter`."""

from collections.abc import Callable, Mapping

from attnwatch.dashboard.sinks import drawn
from attnwatch.dashboard.words import diagnosis_markdown
from attnwatch.diagnosis import Diagnosis
from attnwatch.recorder import AttentionHistory


def write_figures(writer, history: AttentionHistory) -> None:
    """The heatmaps of the latest observation and the layers over time, under Images.

    Raises:
        ImportError: matplotlib is missing; the message says how to install it.
    """
    for tag, image in drawn(history).items():
        writer.add_image(tag, image, int(history.steps[-1]), dataformats="HWC")


def write_diagnosis(writer, diagnosis: Diagnosis) -> None:
    """The verdict as markdown, under Text."""
    writer.add_text("attention/diagnosis", diagnosis_markdown(diagnosis), diagnosis.step)


class TensorBoardSink:
    """Everything, under the tags that it is given.

    Args:
        writer: returns the `SummaryWriter`.
    """

    def __init__(self, name: str, key: int, writer: Callable):
        self.name, self.key = name, key
        self._writer = writer

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        for tag, number in numbers.items():
            self._writer().add_scalar(tag, number, step)

    def figures(self, history: AttentionHistory) -> None:
        write_figures(self._writer(), history)

    def text(self, tag: str, markdown: str, step: int) -> None:
        self._writer().add_text(tag, markdown, step)
