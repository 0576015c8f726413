"""Trainings that are kept in several formats, once for all tests of the readers."""

from pathlib import Path
from typing import NamedTuple

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import attnwatch.transformers
from attnwatch import AttentionHistory
from tests.support.kept_runs import train_lightning
from tests.support.transformers_training import train


class KeptRun(NamedTuple):
    """Folder in which a training was kept, and what its monitor has recorded."""

    folder: Path
    history: AttentionHistory


@pytest.fixture(scope="session")
def lightning_run(tmp_path_factory) -> KeptRun:
    """By Lightning: `csv/`, `tensorboard/` and `checkpoints/`."""
    folder = tmp_path_factory.mktemp("lightning")
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=6, save_top_k=-1)
    loggers = [CSVLogger(folder / "csv", name=None), TensorBoardLogger(folder / "tensorboard")]
    return KeptRun(folder, train_lightning(checkpoint, logger=loggers))


@pytest.fixture(scope="session")
def transformers_run(tmp_path_factory) -> KeptRun:
    """The output folder of the transformers Trainer, with two checkpoints."""
    folder = tmp_path_factory.mktemp("transformers")
    monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=2, report=False)
    train(monitor, directory=folder, save_strategy="steps", save_steps=10, logging_steps=2)
    return KeptRun(folder, monitor.history)
