"""Runs in MLflow's store of files."""

import sqlite3

import mlflow
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnwatch import ConfigurationError
from attnwatch.runs import read_run
from tests.support.histories import course, falling
from tests.support.kept_runs import assert_layers_are_those_of, logged

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")
HISTORY = course(normalized_entropy=falling(0.99, 0.4, 6), loss=falling(5, 1, 6), observations=6)


@pytest.fixture
def run_id(tmp_path, monkeypatch):
    """A run in `mlruns/`, as the client of MLflow writes it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(f"file:{tmp_path}/mlruns")
    made = client.create_run("0", run_name="night <1>").info.run_id
    for step, numbers in logged(HISTORY):
        for tag, number in numbers.items():
            client.log_metric(made, tag, number, step=step)
    for step, loss in zip(HISTORY.steps.tolist(), HISTORY.loss.tolist(), strict=True):
        client.log_metric(made, "train_loss", loss, step=step)
    client.log_param(made, "learning_rate", 1e-3)
    return made


@pytest.mark.parametrize("place", ["mlruns", "mlruns/0", "run"])
def test_run_has_what_was_logged(run_id, place, tmp_path):
    run = read_run(tmp_path / (f"mlruns/0/{run_id}" if place == "run" else place))
    assert_layers_are_those_of(run.history, HISTORY)
    np.testing.assert_array_equal(run.history.loss, HISTORY.loss)
    assert (run.name, run.settings) == ("night <1>", {"learning_rate": "0.001"})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_metric_that_is_being_written_is_read_up_to_its_end(run_id, tmp_path, share):
    file = tmp_path / f"mlruns/0/{run_id}/metrics/train_loss"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    run = read_run(tmp_path)
    file.write_bytes(content)
    values = run.curves["train_loss"].values if "train_loss" in run.curves else []
    assert list(values) == HISTORY.loss[: len(values)].tolist()


@pytest.mark.parametrize("line", ["1 2\t3\n", "soon\n", "1 many 3\n", "1 2 1.5\n", "\0\0\0\n"])
def test_damaged_metric_is_refused_in_words(run_id, tmp_path, line):
    file = tmp_path / f"mlruns/0/{run_id}/metrics/train_loss"
    file.write_text(file.read_text() + line)
    with pytest.raises(ConfigurationError, match="is damaged: line 7 of 'train_loss' has no value or step"):
        read_run(tmp_path)


def test_database_is_refused_with_a_remedy(tmp_path):
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(ConfigurationError, match=r"is an MLflow database; .* Judge the run by another log"):
        read_run(tmp_path / "mlflow.db")
