"""TensorBoard."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnwatch.loggers.base import Draw, Logger, Setting
from attnwatch.plugins import register

if TYPE_CHECKING:
    from attnwatch.dashboard.layout import Layout


@register
class TensorBoardLogger(Logger):
    """TensorBoard: numbers, images and text under their tags, with Custom Scalars and HParams."""

    name = "tensorboard"
    class_names = ("TensorBoardLogger", "TensorBoardCallback", "SummaryWriter")

    @property
    def _writer(self) -> Any:
        """The `SummaryWriter` of Lightning, of transformers, or the target itself."""
        return getattr(self.target, "experiment", getattr(self.target, "tb_writer", self.target))

    def log_scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Write the numbers in two events, since one event per number takes ten times as long."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        together = list(numbers.items()) if isinstance(self._writer, SummaryWriter) else []
        for tag, number in list(numbers.items())[: 1 if together else None]:  # reopens the file if it was closed
            self._writer.add_scalar(tag, number, step)
        if values := [Summary.Value(tag=tag, simple_value=number) for tag, number in together[1:]]:
            self._writer.file_writer.add_summary(Summary(value=values), step)

    def log_images(self, draw: Draw, step: int) -> None:
        for tag, image in draw().items():
            self._writer.add_image(tag, image, step, dataformats="HWC")

    def log_text(self, tag: str, markdown: str, step: int) -> None:
        self._writer.add_text(tag, markdown, step)

    def log_layout(self, layout: "Layout") -> None:
        groups = {
            group: {
                title: ["Margin" if chart.is_band else "Multiline", list(chart.tags)] for title, chart in charts.items()
            }
            for group, charts in layout.items()
        }
        self._writer.add_custom_scalars(groups)

    def log_outcome(self, settings: Mapping[str, Setting], metrics: Sequence[str]) -> None:
        """Write the outcome into the run itself; `SummaryWriter.add_hparams` would create another run for it."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(dict(settings), dict.fromkeys(metrics)):
            self._writer.file_writer.add_summary(summary)
