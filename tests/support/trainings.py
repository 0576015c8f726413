"""One way to train a tiny Llama under each trainer, for what callbacks do alike under all of them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import attnwatch.lightning
import attnwatch.transformers
from tests.support import lightning_training, transformers_training
from tests.support.models import llama, token_ids

STEPS = 20


def do_nothing(model: nn.Module, step: int) -> None:
    pass


@dataclass
class Run:
    """A training that has ended.

    Attributes:
        losses: of each batch.
        step_losses: what each step minimized.
    """

    trainer: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    num_steps: int
    losses: list[float]
    step_losses: np.ndarray


class Training(ABC):
    """Trainings by one trainer, in one folder.

    Attributes:
        callbacks: the package with the callbacks of this trainer.
        interruption: what comes of a KeyboardInterrupt.
        model_path: where the trainer's module has the model.
        two_processes: options of a training on two processes, of which each calls `train`.
        trainer: the last that was made.
    """

    callbacks: ModuleType
    interruption: type[BaseException]
    model_path: str
    two_processes: dict[str, Any]

    def __init__(self, directory: Path):
        self.directory, self.trainer = directory, None

    @abstractmethod
    def train(
        self,
        *callbacks: Any,
        model: nn.Module | None = None,
        before_batch: Callable[[nn.Module, int], None] = do_nothing,
        steps: int = STEPS,
        batch: int = 2,
        accumulate: int = 1,
        bf16: bool = False,
        clip: float = 0.0,
        learning_rate: float = 1e-3,
        validate_every: int | None = None,
        save_every: int | None = None,
        checkpoint: int | None = None,
        **options: Any,
    ) -> Run:
        """Train for `steps` steps of `accumulate` batches with `batch` sequences each.

        Args:
            before_batch: called with the model and the number of steps so far.
            clip: norm to which gradients are clipped; 0: they are not.
            validate_every: number of steps.
            save_every: number of steps, a multiple of four.
            checkpoint: step to resume from, where an earlier training in this folder has saved.
            options: of this trainer only.
        """


class LightningModule(lightning_training.Llama):
    """The tiny Llama, or another model that is given."""

    def __init__(self, model: nn.Module, before_batch: Callable[[nn.Module, int], None], learning_rate: float):
        super().__init__(lambda module, _: before_batch(module.model, module.global_step))
        self.model, self._learning_rate = model, learning_rate

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self._learning_rate)


class LightningTraining(Training):
    callbacks, interruption, model_path = attnwatch.lightning, SystemExit, "model."
    two_processes = {"devices": 2, "strategy": "ddp"}  # noqa: RUF012

    def train(
        self,
        *callbacks,
        model=None,
        before_batch=do_nothing,
        steps=STEPS,
        batch=2,
        accumulate=1,
        bf16=False,
        clip=0.0,
        learning_rate=1e-3,
        validate_every=None,
        save_every=None,
        checkpoint=None,
        **options,
    ) -> Run:
        pl.seed_everything(0, verbose=False)
        saving = []
        if save_every or checkpoint:
            options = {"limit_train_batches": 4 * accumulate} | options  # it resumes at the end of epochs
        if save_every:
            saving = [ModelCheckpoint(self.directory, every_n_train_steps=save_every, save_top_k=-1, filename="{step}")]
        if validate_every:
            options = {"val_check_interval": validate_every * accumulate} | options
        self.trainer = pl.Trainer(
            **{
                "max_steps": steps,
                "callbacks": [*callbacks, *saving],
                "accumulate_grad_batches": accumulate,
                "precision": "bf16-mixed" if bf16 else "32-true",
                "gradient_clip_val": clip or None,
                "default_root_dir": self.directory,
                "accelerator": "cpu",
                "logger": False,
                "enable_checkpointing": bool(saving),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                **options,
            }
        )
        module = LightningModule(model or llama(), before_batch, learning_rate)
        path = self.directory / f"step={checkpoint}.ckpt" if checkpoint else None
        validation = lightning_training.batches(2) if validate_every else None
        ids, sampler = token_ids(400), None
        if options.get("devices") == 2:  # in the order of the data, as on one process
            sampler = DistributedSampler(ids, 2, int(os.environ["RANK"]), shuffle=False)
        self.trainer.fit(module, DataLoader(ids, batch, sampler=sampler), validation, ckpt_path=path)
        step_losses = np.reshape(module.losses, (-1, accumulate)).mean(1)
        optimizer, num_steps = self.trainer.optimizers[0], self.trainer.global_step
        return Run(self.trainer, module.model, optimizer, num_steps, module.losses, step_losses)


class TransformersTraining(Training):
    callbacks, interruption, model_path = attnwatch.transformers, KeyboardInterrupt, ""
    two_processes = {"ddp_backend": "gloo"}  # noqa: RUF012

    def train(
        self,
        *callbacks,
        model=None,
        before_batch=do_nothing,
        steps=STEPS,
        batch=2,
        accumulate=1,
        bf16=False,
        clip=0.0,
        learning_rate=1e-3,
        validate_every=None,
        save_every=None,
        checkpoint=None,
        **options,
    ) -> Run:
        class Noting(transformers_training.Noting):
            def training_step(self, model, *args, **options):
                before_batch(self.model, self.state.global_step)
                return super().training_step(model, *args, **options)

        if save_every:
            options = {"save_strategy": "steps", "save_steps": save_every} | options
        if validate_every:
            options = {"eval_strategy": "steps", "eval_steps": validate_every} | options
        self.trainer = transformers_training.trainer(
            *callbacks,
            directory=self.directory,
            model=model,
            trainer_class=Noting,
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            bf16=bf16,
            max_grad_norm=clip,
            learning_rate=learning_rate,
            **options,
        )
        self.trainer.train(
            resume_from_checkpoint=str(self.directory / f"checkpoint-{checkpoint}") if checkpoint else None
        )
        losses = self.trainer.losses
        step_losses = np.reshape(losses, (-1, accumulate)).sum(1)  # each is divided by their number
        optimizer, num_steps = self.trainer.optimizer, self.trainer.state.global_step
        return Run(self.trainer, self.trainer.model, optimizer, num_steps, losses, step_losses)


TRAININGS = {"lightning": LightningTraining, "transformers": TransformersTraining}
