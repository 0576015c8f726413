"""Publication of a history in the loggers of a trainer."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attnwatch.alerts import Alert
from attnwatch.dashboard import layer_scalars, run_scalars, site_scalars
from attnwatch.dashboard.markdown import diagnosis_markdown
from attnwatch.diagnosis import Diagnosis
from attnwatch.loggers import Draw, Logger
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.messages import NonFatal


class Publisher:
    """Writes to every logger of a trainer what it can show.

    What a logger fails to take it is not given again; one warning says so, and training goes on.

    Args:
        max_layer_curves: see `site_scalars`.
    """

    def __init__(self, max_layer_curves: int = 0):
        self._max_layer_curves = max_layer_curves
        self._non_fatal = NonFatal()

    def history(self, loggers: Sequence[Logger], history: AttentionHistory, *, after_step: int) -> None:
        """Log the observations after the step `after_step`, each under its own step."""
        for index, step in enumerate(history.steps):
            if step > after_step:
                numbers = run_scalars(history, index)
                for scalars in (site_scalars, layer_scalars):
                    numbers |= scalars(history, index, max_sites=self._max_layer_curves)
                self.scalars(loggers, numbers, int(step))

    def scalars(self, loggers: Sequence[Logger], numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by tag."""
        self._for_each(loggers, "scalars", lambda logger: logger.log_scalars(numbers, step))

    def figures(
        self, loggers: Sequence[Logger], history: AttentionHistory, marks: Sequence[tuple[int, str]] = ()
    ) -> None:
        """Log the heatmaps of the latest observation and the layers over time.

        Args:
            marks: (step, label) of each change of the model.
        """

        def draw() -> Mapping[str, np.ndarray]:
            from attnwatch.dashboard.figures import figures
            from attnwatch.dashboard.heatmaps import pixels

            return {tag: pixels(figure) for tag, figure in figures(history, marks).items()}

        self.images(loggers, draw, int(history.steps[-1]))

    def images(self, loggers: Sequence[Logger], draw: Draw, step: int) -> None:
        """Log images by tag, uint8 [height, width, 3], drawn once and only if some logger shows any."""
        draw = functools.cache(draw)
        self._for_each(loggers, "pictures", lambda logger: logger.log_images(draw, step))

    def diagnosis(self, loggers: Sequence[Logger], diagnosis: Diagnosis, remarks: Sequence[str] = ()) -> None:
        """Log the verdict, and below it the remarks."""
        markdown = "\n\n".join([diagnosis_markdown(diagnosis), *remarks])
        self.text(loggers, "attention/diagnosis", markdown, diagnosis.step)

    def text(self, loggers: Sequence[Logger], tag: str, markdown: str, step: int) -> None:
        """Log a text under a tag."""
        self._for_each(loggers, f"text {tag!r}", lambda logger: logger.log_text(tag, markdown, step))

    def alert(self, loggers: Sequence[Logger], alert: Alert) -> None:
        """Alert people in the way of each logger."""
        self._for_each(loggers, "alerts", lambda logger: logger.log_alert(alert.title, alert.text, alert.level))

    def _for_each(self, loggers: Sequence[Logger], what: str, write: Callable[[Logger], None]) -> None:
        for logger in loggers:
            key, name = (id(logger.target), what), type(logger.target).__name__
            if not self._non_fatal.has_failed(key):
                with self._non_fatal(f"{name} is given no more {what}", key=key):
                    write(logger)
