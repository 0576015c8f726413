"""A training of the transformers Trainer as the callbacks see it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer
from transformers.utils import logging

from attnwatch.callbacks.publisher import Publisher
from attnwatch.capture import has_processes
from attnwatch.errors import ConfigurationError
from attnwatch.heads.pruner import ModelWithOptimizers
from attnwatch.loggers.logger import Sink
from attnwatch.trainers.transformers.loggers import sinks_of
from attnwatch.utils.messages import tell

_logger = logging.get_logger("transformers.attnwatch")


class TransformersRun:
    """See `TrainerRun`."""

    is_trial = False

    def __init__(self, trainer: Trainer):
        self.arguments = (trainer, trainer.model)
        self.trainer = trainer
        self._publisher = Publisher()
        self._unlogged: dict[str, float] = {}

    @property
    def global_step(self) -> int:
        return self.trainer.state.global_step

    @property
    def total_steps(self) -> int | None:
        return self.trainer.state.max_steps

    @property
    def is_main_process(self) -> bool:
        return self.trainer.is_world_process_zero()

    @property
    def has_validation_data(self) -> bool:
        return self.trainer.eval_dataset is not None

    def validation_loader(self) -> Iterable[Any]:
        data = self.trainer.eval_dataset
        name = next(iter(data)) if isinstance(data, dict) else None
        loader = self.trainer.get_eval_dataloader(name)
        # Accelerate's own loader would count as the training's while it is open, and wait for other processes.
        return getattr(loader, "base_dataloader", loader)

    def to_device(self, batch: Any) -> Any:
        return send_to_device(batch, self.trainer.args.device)

    @property
    def tokenizer(self) -> Any:
        """Processors of several kinds of inputs have one in them."""
        processor = self.trainer.processing_class
        tokenizer = getattr(processor, "tokenizer", processor)
        return tokenizer if callable(getattr(tokenizer, "decode", None)) else None

    @property
    def metrics(self) -> Collection[str]:
        return {name for entry in self.trainer.state.log_history for name in entry}

    @property
    def sinks(self) -> Sequence[Sink]:
        return sinks_of(self.trainer)

    @property
    def callbacks(self) -> Sequence[object]:
        return self.trainer.callback_handler.callbacks

    def log(self, numbers: Mapping[str, float], step: int, *, to_sinks: bool = False) -> None:
        """What sinks get at its own step has an entry of its own; other numbers wait for the trainer's next log."""
        if to_sinks:
            self._unlogged |= numbers
        else:
            known = {name: number for name, number in numbers.items() if number == number}
            self.trainer.state.log_history.append({**known, "epoch": self.trainer.state.epoch, "step": step})

    def trainer_logs(self) -> None:
        """The trainer logs now: what has waited for it comes along."""
        numbers, self._unlogged = self._unlogged, {}
        if numbers:
            self.trainer.state.log_history[-1] |= numbers
            self._publisher.numbers(self.sinks, numbers, self.global_step)

    def tell(self, message: str) -> None:
        if self.is_main_process:
            tell(message, by=_logger)

    def is_true_anywhere(self, decision: bool) -> bool:
        if not has_processes():
            return decision
        anywhere = torch.tensor(float(decision), device=self.trainer.args.device)
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        return bool(anywhere)

    def agree(self, value: Any) -> Any:
        if not has_processes():
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.trainer.args.device)
        return values[0]

    def stop(self) -> None:
        self.trainer.control.should_training_stop = True

    def patients(self) -> list[ModelWithOptimizers]:
        optimizer = self.trainer.optimizer
        return [(self.trainer.model, [getattr(optimizer, "optimizer", optimizer)])]

    def parameters_were_replaced(self) -> None:
        """Data parallelism reduces the gradients of the parameters that it was made with."""
        for module in self.trainer.model_wrapped.modules():
            if isinstance(module, DistributedDataParallel):
                _make_anew(module)

    @property
    def has_whole_gradients(self) -> bool:
        """After a batch: whether the gradients are those of the step, neither scaled nor clipped."""
        accelerator = self.trainer.accelerator
        return accelerator.sync_gradients and accelerator.scaler is None

    def mean_loss(self, loss: Tensor) -> Tensor:
        """The mean over a micro-batch of what the trainer has divided so that micro-batches add up."""
        return loss.detach() * self.trainer.current_gradient_accumulation_steps

    def refuse_shards(self, who: str) -> None:
        """Raises a `ConfigurationError` where parameters are sharded, or are not this process's own."""
        trainer = self.trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.args.n_gpu > 1:
            raise ConfigurationError(
                f"{who} does not work where FSDP, DeepSpeed or DataParallel shards parameters or keeps copies of them. "
                "Prune a checkpoint with attnwatch.prune_heads, then train that."
            )


_DATA_PARALLEL_OPTIONS = (
    "device_ids",
    "output_device",
    "dim",
    "broadcast_buffers",
    "process_group",
    "gradient_as_bucket_view",
    "find_unused_parameters",
    "static_graph",
)


def _make_anew(wrapper: DistributedDataParallel) -> None:
    """In place: the training loop holds the wrapper."""
    wrapper.__init__(wrapper.module, **{name: getattr(wrapper, name) for name in _DATA_PARALLEL_OPTIONS})
