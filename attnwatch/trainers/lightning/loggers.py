"""Where a Lightning trainer logs."""

from collections.abc import Mapping, Sequence

from attnwatch.loggers.logger import MLflowSink, ScalarSink, Sink, WandbSink
from attnwatch.loggers.tensorboard import TensorBoardSink
from attnwatch.trainers.lightning.api import is_one, pl


def sinks_of(trainer: pl.Trainer) -> Sequence[Sink]:
    """All loggers, on the process that logs."""
    return [_sink(logger) for logger in trainer.loggers] if trainer.is_global_zero else []


def _sink(logger: pl.loggers.Logger) -> Sink:
    def write(numbers: Mapping[str, float], step: int) -> None:
        logger.log_metrics(dict(numbers), step)

    name, key = type(logger).__name__, id(logger)
    if is_one(logger, "TensorBoardLogger"):
        return TensorBoardSink(name, key, lambda: logger.experiment)
    if is_one(logger, "WandbLogger"):
        return WandbSink(name, key, write, lambda: logger.experiment)
    if is_one(logger, "MLFlowLogger"):
        return MLflowSink(name, key, write, lambda *image: logger.experiment.log_image(logger.run_id, *image))
    return ScalarSink(name, key, write)
