"""Where a Lightning trainer logs."""

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from attnwatch.dashboard.sinks import MLflowSink, ScalarSink, Sink, WandbSink
from attnwatch.dashboard.tensorboard import TensorBoardSink


def sinks_of(trainer: pl.Trainer) -> Sequence[Sink]:
    """All loggers, on the process that logs."""
    return [_sink(logger) for logger in trainer.loggers] if trainer.is_global_zero else []


def _sink(logger: Logger) -> Sink:
    def write(numbers: Mapping[str, float], step: int) -> None:
        logger.log_metrics(dict(numbers), step)

    name, key = type(logger).__name__, id(logger)
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardSink(name, key, lambda: logger.experiment)
    if isinstance(logger, WandbLogger):
        return WandbSink(name, key, write, lambda: logger.experiment)
    if isinstance(logger, MLFlowLogger):
        return MLflowSink(name, key, write, lambda *image: logger.experiment.log_image(logger.run_id, *image))
    return ScalarSink(name, key, write)
