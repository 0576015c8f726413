"""Where a transformers Trainer reports to."""

import copy
from collections.abc import Mapping, Sequence

from transformers import Trainer, TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

from attnwatch.loggers.logger import MLflowSink, ScalarSink, Sink, WandbSink
from attnwatch.loggers.tensorboard import TensorBoardSink

_INTEGRATIONS = "transformers.integrations"


def sinks_of(trainer: Trainer) -> Sequence[Sink]:
    """All that `report_to` names, on the process that reports."""
    if not trainer.is_world_process_zero():
        return []
    reporting = [each for each in trainer.callback_handler.callbacks if type(each).__module__.startswith(_INTEGRATIONS)]
    return [_sink(callback, trainer) for callback in reporting]


def _sink(callback: TrainerCallback, trainer: Trainer) -> Sink:
    def write(numbers: Mapping[str, float], step: int) -> None:
        state = copy.copy(trainer.state)
        state.global_step = step
        callback.on_log(trainer.args, state, trainer.control, logs=dict(numbers), model=trainer.model)

    name, key = type(callback).__name__, id(callback)
    if isinstance(callback, TensorBoardCallback):
        return TensorBoardSink(name, key, lambda: callback.tb_writer)
    if isinstance(callback, WandbCallback):
        return WandbSink(name, key, write, lambda: callback._wandb.run)
    if isinstance(callback, MLflowCallback):
        return MLflowSink(name, key, write, lambda *image: callback._ml_flow.log_image(*image))
    return ScalarSink(name, key, write)
