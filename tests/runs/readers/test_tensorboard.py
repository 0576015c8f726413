"""Logs of TensorBoard. `tests/test_judging.py` and `tests/test_damaged_files.py` have more of them."""

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from attnwatch import ConfigurationError
from attnwatch.runs import read_run
from tests.support.kept_runs import assert_layers_are_those_of

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


def test_log_has_what_the_monitor_recorded(lightning_run):
    run = read_run(lightning_run.folder / "tensorboard")
    assert_layers_are_those_of(run.history, lightning_run.history)
    assert (run.name, run.source) == ("version_0", "TensorBoard log")
    (file,) = (lightning_run.folder / "tensorboard").rglob("*tfevents*")
    np.testing.assert_array_equal(read_run(file).history["entropy"], run.history["entropy"])


def test_run_that_was_resumed_has_several_files(tmp_path):
    for begin in (0, 10):
        with SummaryWriter(tmp_path, filename_suffix=f".{begin}") as writer:
            for step in range(begin, begin + 12):
                writer.add_scalar("loss", float(begin + step), step)
    loss = read_run(tmp_path).curves["loss"]
    assert loss.steps.tolist() == list(range(22))
    assert loss.values[9:12].tolist() == [9, 20, 21]


def test_log_without_a_loss_names_what_is_there(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("accuracy", 0.5, 0)
    with pytest.raises(ConfigurationError, match=r"no training loss .*\(--loss-tag\); logged tags: accuracy\."):
        read_run(tmp_path)


def test_numbers_that_are_tensors_are_read(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_text("notes", "no number")
        writer.add_tensor("weights", torch.ones(3))
        for step in range(3):
            writer.add_scalar("loss", 3.0 - step, step, new_style=True)
    run = read_run(tmp_path)
    assert run.history.loss.tolist() == [3, 2, 1]
    assert [*run.curves] == ["loss"]
