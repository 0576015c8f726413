"""From a history to wherever a trainer logs."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attnwatch.dashboard import run_scalars, site_scalars
from attnwatch.dashboard.markdown import diagnosis_markdown
from attnwatch.diagnosis import Diagnosis
from attnwatch.loggers.logger import Sink, drawn
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.messages import warn


class Publisher:
    """Writes to every logger of a trainer what it can show.

    What a logger fails to take it is not given again; one warning says so, and training goes on.

    Args:
        max_layer_curves: see `site_scalars`.
    """

    def __init__(self, max_layer_curves: int = 0):
        self._max_layer_curves = max_layer_curves
        self._broken: set[tuple[int, str]] = set()

    def scalars(self, sinks: Sequence[Sink], history: AttentionHistory, *, after_step: int) -> None:
        """The observations after the step `after_step`, each under its own step."""
        for index, step in enumerate(history.steps):
            if step > after_step:
                numbers = run_scalars(history, index)
                numbers |= site_scalars(history, index, max_sites=self._max_layer_curves)
                self.numbers(sinks, numbers, int(step))

    def numbers(self, sinks: Sequence[Sink], numbers: Mapping[str, float], step: int) -> None:
        self._all(sinks, "scalars", lambda sink: sink.scalars(numbers, step))

    def figures(self, sinks: Sequence[Sink], history: AttentionHistory, marks: Sequence[tuple[int, str]] = ()) -> None:
        """The heatmaps of the latest observation and the layers over time.

        Args:
            marks: (step, words) of what has changed in the model.
        """
        self.images(sinks, lambda: drawn(history, marks), int(history.steps[-1]))

    def images(self, sinks: Sequence[Sink], draw: Callable[[], Mapping[str, np.ndarray]], step: int) -> None:
        """Pictures by tag, uint8 [height, width, 3], drawn once and only if some logger shows any."""
        draw = functools.cache(draw)
        self._all(sinks, "pictures", lambda sink: sink.images(draw, step))

    def diagnosis(self, sinks: Sequence[Sink], diagnosis: Diagnosis, remarks: Sequence[str] = ()) -> None:
        """The verdict, and below it the remarks."""
        markdown = "\n\n".join([diagnosis_markdown(diagnosis), *remarks])
        self._all(sinks, "findings", lambda sink: sink.text("attention/diagnosis", markdown, diagnosis.step))

    def text(self, sinks: Sequence[Sink], tag: str, markdown: str, step: int) -> None:
        self._all(sinks, tag, lambda sink: sink.text(tag, markdown, step))

    def _all(self, sinks: Sequence[Sink], what: str, write: Callable[[Sink], None]) -> None:
        for sink in sinks:
            if (sink.key, what) in self._broken:
                continue
            try:
                write(sink)
            except Exception as error:
                self._broken.add((sink.key, what))
                cause = f" (because of {error.__cause__!r})" if error.__cause__ else ""
                warn(f"{sink.name} is given no more {what}, training goes on: {type(error).__name__}: {error}{cause}")
