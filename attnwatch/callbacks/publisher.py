"""Publication of a history in the loggers of a trainer."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from attnwatch.alerts import Alert
from attnwatch.dashboard import extra_scalars, layer_scalars, run_scalars, site_scalars
from attnwatch.dashboard.card import RunCard, card_markdown
from attnwatch.dashboard.layout import run_layout
from attnwatch.dashboard.outcome import RunOutcome
from attnwatch.loggers import Draw, Logger
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.messages import NonFatal


class Publisher:
    """Write to all loggers of a trainer what each can show.

    If writing one kind of output fails in a logger, it is not tried again; one warning says so, and training continues.

    Args:
        max_layer_curves: see `site_scalars`.
    """

    def __init__(self, max_layer_curves: int = 0):
        self._max_layer_curves = max_layer_curves
        self._non_fatal = NonFatal()
        self._is_arranged = False

    def history(self, loggers: Sequence[Logger], history: AttentionHistory, *, after_step: int) -> None:
        """Log the observations after step `after_step`, each at its own step, and once the layout of the charts."""
        if not self._is_arranged:
            self._is_arranged = True
            self._for_each(loggers, "charts of several curves", lambda logger: logger.log_layout(run_layout()))
        for index, step in enumerate(history.steps):
            if step > after_step:
                numbers = run_scalars(history, index) | extra_scalars(history, index)
                for scalars in (site_scalars, layer_scalars):
                    numbers |= scalars(history, index, max_sites=self._max_layer_curves)
                self.scalars(loggers, numbers, int(step))

    def scalars(self, loggers: Sequence[Logger], numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by tag."""
        self._for_each(loggers, "scalars", lambda logger: logger.log_scalars(numbers, step))

    def figures(
        self,
        loggers: Sequence[Logger],
        history: AttentionHistory,
        marks: Sequence[tuple[int, str]] = (),
        removed: Mapping[str, Collection[int]] = MappingProxyType({}),
    ) -> None:
        """Log the heatmaps of the latest observation and the layers over time.

        Args:
            marks: (step, label) of each change of the model.
            removed: numbers of the heads that were removed, by site.
        """

        def draw() -> Mapping[str, np.ndarray]:
            from attnwatch.dashboard.figures import figures
            from attnwatch.dashboard.heatmaps import pixels

            return {tag: pixels(figure) for tag, figure in figures(history, marks, removed).items()}

        self.images(loggers, draw, int(history.steps[-1]))

    def images(self, loggers: Sequence[Logger], draw: Draw, step: int) -> None:
        """Log images by tag, uint8 [height, width, 3], drawn once and only if some logger shows any."""
        draw = functools.cache(draw)
        self._for_each(loggers, "pictures", lambda logger: logger.log_images(draw, step))

    def card(self, loggers: Sequence[Logger], card: RunCard) -> None:
        """Log the first page about a run."""
        self.text(loggers, "attention/diagnosis", card_markdown(card), card.diagnosis.step)

    def outcome(self, loggers: Sequence[Logger], outcome: RunOutcome) -> None:
        """Log the settings and metrics by which finished runs are compared."""
        settings, metrics = outcome.settings, outcome.metrics
        self._for_each(loggers, "hyperparameters", lambda logger: logger.log_outcome(settings, metrics))

    def page(self, loggers: Sequence[Logger], page: Path) -> None:
        """Store the page about a run in each logger that can keep files."""
        self._for_each(loggers, "pages", lambda logger: logger.log_page(page))

    def text(self, loggers: Sequence[Logger], tag: str, markdown: str, step: int) -> None:
        """Log a text under a tag."""
        self._for_each(loggers, f"text {tag!r}", lambda logger: logger.log_text(tag, markdown, step))

    def alert(self, loggers: Sequence[Logger], alert: Alert) -> None:
        """Send an alert through each logger."""
        self._for_each(loggers, "alerts", lambda logger: logger.log_alert(alert.title, alert.text, alert.level))

    def _for_each(self, loggers: Sequence[Logger], what: str, write: Callable[[Logger], None]) -> None:
        for logger in loggers:
            key, name = (id(logger.target), what), type(logger.target).__name__
            if not self._non_fatal.has_failed(key):
                with self._non_fatal(f"writing {what} to {name} failed and is not tried again", key=key):
                    write(logger)
