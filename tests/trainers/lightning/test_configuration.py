"""Callbacks from YAML, under Lightning's other name, and the loggers that people have."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import mlflow
import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger

import attnwatch.transformers
from attnwatch import Guard, Thresholds
from attnwatch.diagnosis.findings.uniform_attention import UniformAttention
from attnwatch.lightning import AttentionMonitor, HeadPruning, TokenDropping
from tests.support.lightning_training import Llama, batches
from tests.support.processes import run_script
from tests.support.transformers_training import train

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

YAML = """
trainer:
  max_steps: 12
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  callbacks:
    - class_path: attnwatch.lightning.AttentionMonitor
      init_args:
        every_n_steps: 2
        sites: ["*layers.0*"]
        on_finding: {non_finite: stop}
        thresholds: {patience: 3}
        rules:
          - class_path: attnwatch.diagnosis.findings.uniform_attention.UniformAttention
            init_args: {enter: 0.98}
    - class_path: attnwatch.lightning.HeadPruning
      init_args: {target: 0.5, start: 2, end: 0.5, num_cuts: 2, guard: {tolerance: 0.1}}
    - class_path: attnwatch.lightning.TokenDropping
      init_args: {keep_ratio: 0.5, first_layer: 0, last_layer: 1, min_tokens: 4, protected_ids: [3]}
"""


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return batches(20)


def settings(callback) -> dict:
    """What a callback was made with."""
    known = ("_options", "_thresholds", "_figures_every_n_steps", "_max_layer_curves", "schedule")
    part = callback.part
    kept = {name: value for name, value in vars(part).items() if name in known}
    kept["rules"] = getattr(getattr(part, "_rules", None), "_given", None)
    return kept | {"actions": getattr(getattr(part, "_actions", None), "_actions", None)}


@pytest.mark.slow
def test_yaml_and_keywords_make_the_same_callbacks(tmp_path):
    (tmp_path / "config.yaml").write_text(YAML)
    cli = LightningCLI(Llama, Data, args=["fit", "--config", str(tmp_path / "config.yaml")], save_config_callback=None)
    ours = [
        AttentionMonitor(
            every_n_steps=2,
            sites=["*layers.0*"],
            on_finding={"non_finite": "stop"},
            thresholds=Thresholds(patience=3),
            rules=[UniformAttention(enter=0.98)],
        ),
        HeadPruning(target=0.5, start=2, end=0.5, num_cuts=2, guard=Guard(tolerance=0.1)),
        TokenDropping(keep_ratio=0.5, first_layer=0, last_layer=1, min_tokens=4, protected_ids=[3]),
    ]
    theirs = [callback for callback in cli.trainer.callbacks if type(callback).__module__.startswith("attnwatch")]
    assert [settings(callback) for callback in theirs] == [settings(callback) for callback in ours]
    assert cli.trainer.global_step == 12
    assert len(theirs[0].history) == 6


OTHER_NAME = """
import sys, warnings
import pytorch_lightning as pl
import torch
from tests.support.models import llama, token_ids
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from attnwatch.lightning import AttentionMonitor, HeadPruning, TokenDropping

warnings.simplefilter("ignore")
assert "lightning.pytorch" not in sys.modules


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = llama()

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


monitor, pruning = AttentionMonitor(every_n_steps=2), HeadPruning(0.5, guard=None, start=2, end=4, num_cuts=2)
assert isinstance(monitor, pl.Callback)
dropping = TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=1)
trainer = pl.Trainer(
    max_steps=8, accelerator="cpu", callbacks=[monitor, pruning, dropping], logger=TensorBoardLogger(sys.argv[1]),
    enable_progress_bar=False, default_root_dir=sys.argv[1],
)
trainer.fit(Module(), DataLoader(token_ids(40), batch_size=2))
assert monitor.history.steps.tolist() == [0, 2, 4, 6]
assert len(pruning.cuts) == 2
assert "lightning.pytorch" not in sys.modules
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
tags = EventAccumulator(trainer.logger.log_dir).Reload().Tags()
assert "attention_details/entropy" in tags["scalars"] and "attention_heads/max_logit" in tags["images"]
"""


@pytest.mark.slow
def test_pytorch_lightning(tmp_path):
    run_script(OTHER_NAME, tmp_path)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")


def shown(directory) -> tuple[dict, set[str], set[str]]:
    """(what W&B has of it, pictures and pages of W&B, files of MLflow)"""
    import wandb

    mlflow.flush_async_logging()
    summary, media = dict(wandb.run.summary), Path(wandb.run.dir, "media")
    wandb.finish()
    shown = [*media.joinpath("images").rglob("*.png"), *media.joinpath("html").rglob("*.html")]
    pictures = {str(path.relative_to(media).relative_to(path.relative_to(media).parts[0])) for path in shown}
    return summary, pictures, {str(path) for path in (directory / "mlruns").rglob("*")}


@pytest.mark.slow
@pytest.mark.writes_pages
@pytest.mark.usefixtures("offline")
def test_loggers_of_lightning(tmp_path):
    loggers = [
        CSVLogger(tmp_path),
        WandbLogger(save_dir=tmp_path, offline=True),
        MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns"),
    ]
    trainer = pl.Trainer(
        max_steps=12,
        accelerator="cpu",
        logger=loggers,
        callbacks=[AttentionMonitor(every_n_steps=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Llama(), batches(20))
    with open(f"{loggers[0].log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["attention/normalized_entropy"]]
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 6, 8, 10]
    summary, pictures, files = shown(tmp_path)
    assert summary["attention/normalized_entropy"] == pytest.approx(float(rows[-1]["attention/normalized_entropy"]))
    assert any(picture.startswith("attention_heads/normalized_entropy") for picture in pictures)
    assert any(picture.startswith("attention/report") for picture in pictures)
    assert any(file.endswith("artifacts/attnwatch-run.html") for file in files)
    assert any(file.endswith("metrics/attention/normalized_entropy") for file in files)
    assert any(file.endswith("attention_layers/max_logit/step_10.png") for file in files)


@pytest.mark.slow
@pytest.mark.writes_pages
@pytest.mark.usefixtures("offline")
def test_reports_of_transformers(tmp_path):
    monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=2)
    run = train(monitor, directory=tmp_path, report_to=["wandb", "mlflow"])
    last = run.state.log_history[-1]
    summary, pictures, files = shown(tmp_path)
    assert summary["train/attention/normalized_entropy"] == pytest.approx(
        monitor.history["normalized_entropy"][-1].mean(), rel=1e-5
    )
    assert last["step"] == 20
    assert any(picture.startswith("attention_heads/normalized_entropy") for picture in pictures)
    assert any(picture.startswith("attention/report") for picture in pictures)
    assert any(file.endswith("artifacts/attnwatch-run.html") for file in files)
    assert any(file.endswith("metrics/attention/normalized_entropy") for file in files)
    assert any("attention_layers/max_logit/step_" in file for file in files)
