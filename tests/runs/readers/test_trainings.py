"""Trainings under each trainer, read back from W&B and MLflow as their loggers have written them."""

import mlflow
import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

import attnwatch.transformers
from attnwatch import AttentionHistory
from attnwatch.runs import read_run
from tests.support.kept_runs import assert_layers_are_those_of, train_lightning
from tests.support.transformers_training import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """W&B and MLflow keep their runs in this folder."""
    wandb.teardown()
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    yield tmp_path
    wandb.teardown()


def run_lightning(directory) -> AttentionHistory:
    store = MLFlowLogger(tracking_uri=f"file:{directory}/mlruns")
    return train_lightning(logger=[WandbLogger(save_dir=directory, offline=True), store])


def run_transformers(directory) -> AttentionHistory:
    monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=2, report=False)
    train(monitor, directory=directory / "output", max_steps=12, report_to=["wandb", "mlflow"], logging_steps=1)
    return monitor.history


@pytest.mark.parametrize("run", [run_lightning, run_transformers], ids=["lightning", "transformers"])
def test_logs_have_what_the_monitor_recorded(run, offline):
    recorded = run(offline)
    mlflow.flush_async_logging()
    wandb.finish()
    wandb.teardown()  # only then its file is complete
    for place, source in (("wandb", "W&B run"), ("mlruns", "MLflow run")):
        read = read_run(offline / place)
        assert_layers_are_those_of(read.history, recorded)
        assert (read.source, read.history.total_steps) == (source, 12)
        assert np.isfinite(read.history.loss).sum() >= len(recorded) - 1
        assert not [tag for tag in read.curves if "attention" in tag or "global_step" in tag]
