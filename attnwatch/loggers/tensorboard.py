"""TensorBoard."""

from collections.abc import Mapping
from typing import Any

from attnwatch.loggers.base import Draw, Logger
from attnwatch.plugins import register


@register
class TensorBoardLogger(Logger):
    """TensorBoard: numbers, images and text, under the tags that they are given."""

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
