"""Trainings of a tiny Llama by the transformers Trainer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf
from torch import nn
from torch.utils.data import Dataset

from tests.support.models import llama, token_ids
from tests.support.versions import EARLY

STEPS = 20


class Sequences(Dataset):
    """The same tokens every time, as inputs and labels."""

    def __init__(self, number: int = 200):
        self._ids = token_ids(number)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self._ids[index], "labels": self._ids[index]}


class Noting(hf.Trainer):
    """Notes the loss of each training step."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.losses = []

    def training_step(self, *args, **options):
        loss = super().training_step(*args, **options)
        self.losses.append(loss.item())
        return loss


def trainer(
    *callbacks: hf.TrainerCallback,
    directory: Path,
    model: nn.Module | None = None,
    trainer_class: type[hf.Trainer] = Noting,
    arguments_class: type[hf.TrainingArguments] = hf.TrainingArguments,
    train_dataset: Dataset | None = None,
    data_collator: Callable | None = None,
    **options,
) -> hf.Trainer:
    """On the CPU, without anything on the screen. Options are those of `TrainingArguments`."""
    defaults = {
        "output_dir": str(directory),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 5,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    made = trainer_class(
        model or llama(),
        arguments_class(**defaults | options),
        train_dataset=train_dataset or Sequences(),
        eval_dataset=Sequences(4),
        data_collator=data_collator,
        callbacks=list(callbacks),
    )
    made.remove_callback(hf.PrinterCallback)
    return made


def tensorboard_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Options of a training that reports there."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(directory))
    return {"report_to": "tensorboard"} | ({"logging_dir": str(directory)} if EARLY else {})  # before the variable


def train(*callbacks: hf.TrainerCallback, resume_from_checkpoint=None, **options) -> hf.Trainer:
    """See `trainer`."""
    made = trainer(*callbacks, **options)
    made.train(resume_from_checkpoint=resume_from_checkpoint)
    return made
