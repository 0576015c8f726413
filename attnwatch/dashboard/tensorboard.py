"""Pictures and words for a TensorBoard `SummaryWriter`."""

from collections.abc import Callable, Mapping

from attnwatch.dashboard.sinks import ScalarSink, drawn
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


class TensorBoardSink(ScalarSink):
    """Everything.

    Args:
        writer: returns the `SummaryWriter`.
    """

    def __init__(self, name: str, key: int, write: Callable[[Mapping[str, float], int], None], writer: Callable):
        super().__init__(name, key, write)
        self._writer = writer

    def figures(self, history: AttentionHistory) -> None:
        write_figures(self._writer(), history)

    def text(self, tag: str, markdown: str, step: int) -> None:
        self._writer().add_text(tag, markdown, step)
