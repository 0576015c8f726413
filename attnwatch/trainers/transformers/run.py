"""State of a training by the transformers Trainer, for the callbacks."""

import copy
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

from attnwatch.callbacks.publisher import Publisher
from attnwatch.heads.plan import PLAN_FILE, PruningPlan
from attnwatch.loggers import Logger, logger_for
from attnwatch.loggers.scalars import ScalarLogger
from attnwatch.trainers.base import ModelWithOptimizers, TrainerRun
from attnwatch.trainers.transformers.states import PrunedStates
from attnwatch.utils.messages import inform, warn

_logger: Any = logging.get_logger("transformers.attnwatch")
_INTEGRATIONS = "transformers.integrations"
# Number of latest entries of the log history that are searched for changed metrics, at every log.
_LATEST_LOGS = 16
_SETTINGS = (
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "warmup_steps",
    "weight_decay",
)


class TransformersRun(TrainerRun):
    """One `train` of a transformers Trainer.

    Attributes:
        states: hook for loading states of other sizes into the model; None if its sizes do not change.
    """

    states: PrunedStates | None = None

    def __init__(self, trainer: Trainer):
        super().__init__(trainer, cast(nn.Module, trainer.model))
        self._unlogged: dict[str, float] = {}
        self._publisher = Publisher()

    @property
    def global_step(self) -> int:
        return self.trainer.state.global_step

    @property
    def total_steps(self) -> int | None:
        return self.trainer.state.max_steps or None  # even with `max_steps=0`, the Trainer makes a step

    @property
    def steps_per_epoch(self) -> int | None:
        loader = self.trainer.callback_handler.train_dataloader
        if not has_length(loader):
            return None
        return math.ceil(len(loader) / self.trainer.args.gradient_accumulation_steps)

    def stop(self) -> None:
        self.trainer.control.should_training_stop = True

    def models_with_optimizers(self) -> list[ModelWithOptimizers]:
        optimizer = self.trainer.optimizer
        return [(self.model, [getattr(optimizer, "optimizer", optimizer)])]

    @property
    def sharding(self) -> str | None:
        trainer = self.trainer
        is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.args.n_gpu > 1
        return "FSDP, DeepSpeed or DataParallel" if is_sharded else None

    def before_parameters_change(self) -> None:
        if self.states is not None and self.trainer.args.load_best_model_at_end:
            self.states.removed.note(self.model)

    def after_parameters_changed(self) -> None:
        for module in self.trainer.model_wrapped.modules():
            if isinstance(module, DistributedDataParallel):  # reduces the gradients of the parameters it was built with
                _make_anew(module)

    def after_pruning(self, plan: PruningPlan) -> None:
        self.inform(
            "heads were removed: load folders of save_model or save_pretrained with attnwatch.load_pruned(folder), as "
            "from_pretrained can't load them. If all layers have equally many heads and the model's family allows it, "
            "attnwatch.save_pruned(model, folder) writes a folder that from_pretrained can load."
        )
        if not (hasattr(self.model, "peft_config") and self.is_main_process):
            return
        # Adapters are saved without their base model, so no other file says which heads it lost.
        path = Path(self.trainer.args.output_dir, PLAN_FILE)
        try:
            plan.save(path)
        except OSError as error:
            warn(f"{path} could not be written ({error}): save `PruningPlan.of(model)` beside the adapters yourself.")
        else:
            self.inform(f"{path} lists the heads removed from the adapters' base model; keep it beside the adapters.")

    @property
    def has_validation_data(self) -> bool:
        return self.trainer.eval_dataset is not None

    def validation_loader(self) -> Iterable[Any]:
        data = self.trainer.eval_dataset
        name = next(iter(data)) if isinstance(data, dict) else None
        loader = self.trainer.get_eval_dataloader(name)
        # While open, Accelerate's own loader would count as that of the training, and it waits for other processes.
        return getattr(loader, "base_dataloader", loader)

    @property
    def tokenizer(self) -> Any:
        processor = self.trainer.processing_class
        tokenizer = getattr(processor, "tokenizer", processor)  # multimodal processors contain a tokenizer
        return tokenizer if hasattr(tokenizer, "all_special_ids") else None

    @property
    def is_main_process(self) -> bool:
        return self.trainer.is_world_process_zero()

    @property
    def callbacks(self) -> Sequence[TrainerCallback]:
        return self.trainer.callback_handler.callbacks

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """Arguments that shape the training, the same ones in all runs, so that runs can be compared."""
        return {name: value for name, value in self.trainer.args.to_sanitized_dict().items() if name in _SETTINGS}

    @property
    def loggers(self) -> Sequence[Logger]:
        if not self.is_main_process:
            return []
        found = []
        for each in self.callbacks:
            fallback = ScalarLogger if type(each).__module__.startswith(_INTEGRATIONS) else None
            found.append(logger_for(each, partial(self._write, each), otherwise=fallback))
        return [logger for logger in found if logger is not None]

    def _write(self, callback: TrainerCallback, numbers: Mapping[str, float], step: int) -> None:
        """Pass numbers to a reporting callback at another step than the trainer's."""
        state = copy.copy(self.trainer.state)
        state.global_step = step
        callback.on_log(self.trainer.args, state, self.trainer.control, logs=dict(numbers), model=self.model)

    @property
    def metrics(self) -> Collection[str]:
        return {name for entry in self.trainer.state.log_history for name in entry}

    @property
    def metric_values(self) -> Mapping[str, float]:
        latest = self.trainer.state.log_history[-_LATEST_LOGS:]
        values = {name: value for entry in latest for name, value in entry.items()}
        return {name: value for name, value in values.items() if isinstance(value, float)}

    @property
    def folder(self) -> Path | None:
        return Path(self.trainer.args.output_dir)

    def log(self, numbers: Mapping[str, float], step: int, *, to_loggers: bool = False) -> None:
        """Log numbers: those for the loggers with the trainer's next log, others in an entry of their own."""
        if to_loggers:
            self._unlogged |= numbers
        else:
            known = {name: number for name, number in numbers.items() if not math.isnan(number)}
            self.trainer.state.log_history.append({**known, "epoch": self.trainer.state.epoch, "step": step})

    def log_waiting(self) -> None:
        """Log the numbers that have waited for the trainer's log, which is written now."""
        numbers, self._unlogged = self._unlogged, {}
        if numbers:
            self.trainer.state.log_history[-1] |= numbers
            self._publisher.scalars(self.loggers, numbers, self.global_step)

    def inform(self, message: str) -> None:
        if self.is_main_process:
            inform(message, by=_logger)

    @property
    def has_whole_gradients(self) -> bool:
        """True if the gradients after a batch are those of the whole step, neither scaled nor clipped."""
        accelerator = self.trainer.accelerator
        return accelerator.sync_gradients and accelerator.scaler is None

    def mean_loss(self, loss: Tensor) -> Tensor:
        """Return the mean loss of a micro-batch. The trainer has divided it so that micro-batches add up."""
        return loss.detach() * self.trainer.current_gradient_accumulation_steps


_PLACES = ("device_ids", "output_device", "dim", "process_group")
_CHOICES = ("broadcast_buffers", "gradient_as_bucket_view", "find_unused_parameters", "static_graph")


def _make_anew(wrapper: DistributedDataParallel) -> None:
    """Reinitialize a wrapper in place, since the training loop holds a reference to it."""
    type(wrapper).__init__(wrapper, wrapper.module, **{name: getattr(wrapper, name) for name in (*_PLACES, *_CHOICES)})
