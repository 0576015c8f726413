"""TensorBoard."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnwatch.loggers.base import Draw, Logger, Setting
from attnwatch.plugins import register

if TYPE_CHECKING:
    from attnwatch.dashboard.layout import Layout


@register
class TensorBoardLogger(Logger):
    """TensorBoard: numbers, images and text, under the tags that they are given, with Custom Scalars and HParams."""

    name = "tensorboard"
    class_names = ("TensorBoardLogger", "TensorBoardCallback", "SummaryWriter")

    @property
    def _writer(self) -> Any:
        """The `SummaryWriter` of Lightning, of transformers, or the target itself."""
        return getattr(self.target, "experiment", getattr(self.target, "tb_writer", self.target))

    def log_scalars(self, numbers: Mapping[str, float], step: int) -> None:
        for tag, number in numbers.items():
            self._writer.add_scalar(tag, number, step)

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
        """Write them into the run itself; `SummaryWriter.add_hparams` would begin another run for them."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(dict(settings), dict.fromkeys(metrics)):
            self._writer.file_writer.add_summary(summary)
