"""Alerts of loggers that have some: W&B and trackio."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

import attnwatch.transformers
from attnwatch.runs import read_run
from attnwatch.runs.wandb_file import read_wandb_records
from tests.support import trackio
from tests.support.kept_runs import train_lightning
from tests.support.lightning_loggers import poison
from tests.support.paths import ROOT
from tests.support.poison import Poison
from tests.support.transformers_training import train

pytestmark = [pytest.mark.slow, pytest.mark.logs_warnings, pytest.mark.filterwarnings("ignore")]
TITLE = "attnwatch: non_finite at step 6"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """W&B keeps its runs in this folder, as long as it has not read its settings."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    yield tmp_path
    wandb.teardown()


def run_lightning(directory) -> None:
    logger = WandbLogger(save_dir=directory, offline=True)
    train_lightning(logger=logger, before_step=poison)


def run_transformers(directory) -> None:
    monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=2, flush_every=1)
    train(Poison(), monitor, directory=directory / "output", max_steps=12, report_to=["wandb"])


@pytest.mark.parametrize("run", [run_lightning, run_transformers], ids=["lightning", "transformers"])
def test_wandb_alerts_once(run, offline):
    run(offline)
    wandb.finish()
    wandb.teardown()  # only then its file is complete
    (file,) = {path.resolve() for path in offline.rglob("run-*.wandb")}
    records = [each.alert for each in read_wandb_records(file) if each.WhichOneof("record_type") == "alert"]
    found = [(alert.title, alert.level) for alert in records if "non_finite" in alert.title]
    assert found == [(TITLE, "ERROR")]
    assert all(len(alert.title) < 64 for alert in records)
    (text,) = [alert.text for alert in records if alert.title == TITLE]
    assert "have logits that are nan or infinite" in text


TRAIN = """
import sys, warnings
sys.path.append(sys.argv[1])
warnings.simplefilter("ignore")
import attnwatch.transformers
from tests.support.poison import Poison
from tests.support.transformers_training import train

monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=2, flush_every=1, checkup=False)
train(Poison(), monitor, directory=sys.argv[2], max_steps=12, report_to=["trackio"], project="night")
"""


def test_trackio_alerts_once_and_its_run_can_be_read(tmp_path):
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRAIN, trackio.FOLDER, str(tmp_path / "output")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr
    with sqlite3.connect(tmp_path / "trackio/night.db") as connection:
        alerts = connection.execute("SELECT title, level, text FROM alerts").fetchall()
        rows = [json.loads(row) for (row,) in connection.execute("SELECT metrics FROM metrics")]
    assert [alert[:2] for alert in alerts] == [(TITLE, "error")]
    assert "have logits that are nan or infinite" in alerts[0][2]
    assert any("train/attention/normalized_entropy" in row for row in rows)
    assert read_run(tmp_path / "trackio").history.steps.tolist() == [0, 2, 4, 6, 8, 10]
