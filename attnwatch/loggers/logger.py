"""Where numbers, pictures and words go: what every logger can be given, and those that need no package of ours."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from attnwatch.recorder import AttentionHistory

Draw = Callable[[], Mapping[str, np.ndarray]]


class Sink(Protocol):
    """One logger of a training. What it can't show it leaves out.

    Attributes:
        name: what users call it.
        key: the same for the same logger, whenever it is asked for.
    """

    name: str
    key: int

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers by tag."""

    def images(self, draw: Draw, step: int) -> None:
        """Pictures by tag, each uint8 [height, width, 3]; drawn if it can show them."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Words."""


class ScalarSink:
    """A logger that takes numbers only."""

    def __init__(self, name: str, key: int, write: Callable[[Mapping[str, float], int], None]):
        self.name, self.key = name, key
        self._write = write

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        self._write(numbers, step)

    def images(self, draw: Draw, step: int) -> None:
        pass

    def text(self, tag: str, markdown: str, step: int) -> None:
        pass


class WandbSink(ScalarSink):
    """Weights & Biases: numbers, and pictures beside them.

    Args:
        run: returns the run of wandb.
    """

    def __init__(self, name: str, key: int, write: Callable[[Mapping[str, float], int], None], run: Callable[[], Any]):
        super().__init__(name, key, write)
        self._run = run

    def images(self, draw: Draw, step: int) -> None:
        import wandb

        self._run().log({tag: wandb.Image(image) for tag, image in draw().items()})


class MLflowSink(ScalarSink):
    """MLflow: numbers, and pictures as artifacts.

    Args:
        log_image: of mlflow's client, called with an array and the name of a file.
    """

    def __init__(
        self,
        name: str,
        key: int,
        write: Callable[[Mapping[str, float], int], None],
        log_image: Callable[[np.ndarray, str], None],
    ):
        super().__init__(name, key, write)
        self._log_image = log_image

    def images(self, draw: Draw, step: int) -> None:
        for tag, image in draw().items():
            self._log_image(image, f"{tag}/step_{step}.png")


@contextlib.contextmanager
def matplotlib_needed() -> Iterator[None]:
    """An import that fails says how to install it."""
    try:
        yield
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'attnwatch[tensorboard]'") from error


def drawn(history: AttentionHistory, marks: Sequence[tuple[int, str]] = ()) -> dict[str, np.ndarray]:
    """The pictures of a history by tag, each uint8 [height, width, 3].

    Args:
        marks: see `attnwatch.dashboard.figures.figures`.

    Raises:
        ImportError: matplotlib is missing; the message says how to install it.
    """
    with matplotlib_needed():
        from attnwatch.dashboard.figures import figures, pixels
    return {tag: pixels(figure) for tag, figure in figures(history, marks).items()}
