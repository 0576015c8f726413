"""Numbers, pictures and words for a TensorBoard `SummaryWriter`."""

from collections.abc import Callable, Mapping

from attnwatch.loggers.logger import Draw


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

    def images(self, draw: Draw, step: int) -> None:
        for tag, image in draw().items():
            self._writer().add_image(tag, image, step, dataformats="HWC")

    def text(self, tag: str, markdown: str, step: int) -> None:
        self._writer().add_text(tag, markdown, step)
