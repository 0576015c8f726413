"""From a history to a trainer's loggers."""

import warnings
from collections.abc import Callable

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from attnwatch.dashboard import run_scalars, site_scalars
from attnwatch.dashboard.tensorboard import write_diagnosis, write_figures
from attnwatch.diagnosis import Diagnosis
from attnwatch.errors import AttnwatchWarning
from attnwatch.recorder import AttentionHistory


class LoggerPublisher:
    """Writes scalars to every logger of a trainer, pictures and findings to TensorBoard.

    What a logger fails to take it is not given again; one warning says so, and training goes on.

    Args:
        max_layer_curves: see `site_scalars`.
    """

    def __init__(self, max_layer_curves: int = 0):
        self._max_layer_curves = max_layer_curves
        self._broken: set[tuple[int, str]] = set()

    def scalars(self, trainer: Trainer, history: AttentionHistory, *, after_step: int) -> None:
        """The observations after the step `after_step`, each under its own step."""
        for index, step in enumerate(history.steps):
            if step > after_step:
                numbers = run_scalars(history, index)
                numbers |= site_scalars(history, index, max_sites=self._max_layer_curves)
                for logger in trainer.loggers:
                    self._try(logger, "scalars", lambda logger: logger.log_metrics(numbers, int(step)))  # noqa: B023

    def risk(self, trainer: Trainer, diagnosis: Diagnosis) -> None:
        """The latest risk, under the step it was judged at."""
        for logger in trainer.loggers:
            numbers = {"attention/risk": diagnosis.risk}
            self._try(logger, "scalars", lambda logger: logger.log_metrics(numbers, diagnosis.step))  # noqa: B023

    def figures(self, trainer: Trainer, history: AttentionHistory) -> None:
        """The pictures of `write_figures`, on TensorBoard."""
        for logger in _tensorboards(trainer):
            self._try(logger, "pictures", lambda logger: write_figures(logger.experiment, history))

    def diagnosis(self, trainer: Trainer, diagnosis: Diagnosis) -> None:
        """The verdict, on TensorBoard."""
        for logger in _tensorboards(trainer):
            self._try(logger, "findings", lambda logger: write_diagnosis(logger.experiment, diagnosis))

    def text(self, trainer: Trainer, tag: str, markdown: str, step: int) -> None:
        """Words, on TensorBoard."""
        for logger in _tensorboards(trainer):
            self._try(logger, tag, lambda logger: logger.experiment.add_text(tag, markdown, step))

    def _try(self, logger: Logger, what: str, write: Callable[[Logger], None]) -> None:
        if (id(logger), what) in self._broken:
            return
        try:
            write(logger)
        except Exception as error:
            self._broken.add((id(logger), what))
            cause = f" (because of {error.__cause__!r})" if error.__cause__ else ""
            warnings.warn(
                f"attnwatch gives {type(logger).__name__} no more {what}, training goes on: "
                f"{type(error).__name__}: {error}{cause}",
                AttnwatchWarning,
                stacklevel=2,
            )


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
