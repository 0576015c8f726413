"""Checkpoints of Lightning."""

import os
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from attnwatch import ConfigurationError
from attnwatch.runs import read_run
from tests.support.kept_runs import assert_heads_are_those_of, read_or_refused
from tests.support.lightning_training import Llama, train

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/last.ckpt"])
def test_checkpoint_has_every_head(lightning_run, place):
    run = read_run(lightning_run.folder / place)
    assert_heads_are_those_of(run.history, lightning_run.history)
    assert run.source == "Lightning checkpoint"
    assert run.history.total_steps == 12
    assert set(run.history.coverage.values()) == {"observed"}


def test_earlier_checkpoint_has_what_was_known_then(lightning_run):
    file = next((lightning_run.folder / "checkpoints").glob("*step=6.ckpt"))
    run = read_run(file)
    assert_heads_are_those_of(run.history, lightning_run.history)
    assert run.history.steps.max() < 6


def test_newest_of_a_folder_is_read(lightning_run, tmp_path):
    old, new = (tmp_path / name for name in ("b.ckpt", "a.ckpt"))
    shutil.copy(next((lightning_run.folder / "checkpoints").glob("*step=6.ckpt")), old)
    shutil.copy(lightning_run.folder / "checkpoints/last.ckpt", new)
    os.utime(old, (1, 1))
    assert read_run(tmp_path).name == "a.ckpt"


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_checkpoint_is_not_run(lightning_run, tmp_path):
    content = torch.load(lightning_run.folder / "checkpoints/last.ckpt", weights_only=True)
    content["hyper_parameters"] = {"harm": Marker(tmp_path / "harm")}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ConfigurationError, match=r"holds objects of (io|_io)\.open, and reading them would run code"):
        read_run(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_checkpoint_without_a_monitor_is_refused(tmp_path):
    train(ModelCheckpoint(tmp_path, every_n_train_steps=2), steps=2, module=Llama())
    with pytest.raises(ConfigurationError, match=r"\.ckpt' has no AttentionMonitor state: give the log"):
        read_run(tmp_path)


def test_state_of_another_version_is_refused(lightning_run, tmp_path):
    content = torch.load(lightning_run.folder / "checkpoints/last.ckpt", weights_only=True)
    del content["callbacks"]["AttentionMonitor"]["recorder"]["history"]["sites"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ConfigurationError, match=r"has an AttentionMonitor state that can't be read .*another version"):
        read_run(tmp_path)


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_damaged_checkpoint_is_refused_or_whole(lightning_run, tmp_path, share, damage):
    content = bytearray((lightning_run.folder / "checkpoints/last.ckpt").read_bytes())
    place = int(share * len(content))
    if damage == "cut":
        del content[place:]
    else:
        content[place] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    run = read_or_refused(tmp_path, "is damaged, or is not a checkpoint")
    if run is not None:
        assert damage == "bit"
        assert_heads_are_those_of(run.history, lightning_run.history)
