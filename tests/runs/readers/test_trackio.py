"""Runs of trackio in the database of their project."""

import json
import math
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import tests.support.trackio
from attnwatch import ConfigurationError
from attnwatch.runs import read_run
from tests.support.histories import course, falling
from tests.support.kept_runs import assert_layers_are_those_of, logged, read_or_refused

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")]
HISTORY = course(normalized_entropy=falling(0.99, 0.4, 6), loss=falling(5, 1, 6), observations=6)
WRITE = """
import json, math, sys
sys.path.append(sys.argv[1])
import trackio
for name in json.loads(sys.argv[2]):
    trackio.init(project="night", name=name, config={"rate": 1e-3, "kind": "adam"})
    for step, row in json.loads(sys.argv[3]):
        trackio.log(row, step=step)
    trackio.log({"late": math.inf}, step=99)
    trackio.finish()
"""


def write(folder, *names):
    """As trackio does, in a process of its own: it reads where its folder is when it is imported."""
    rows = [(step, numbers) for step, numbers in logged(HISTORY)]
    rows += [(step, {"loss": loss}) for step, loss in zip(HISTORY.steps.tolist(), HISTORY.loss.tolist(), strict=True)]
    arguments = [tests.support.trackio.FOLDER, json.dumps(names), json.dumps(rows)]
    environment = {"TRACKIO_DIR": str(folder), "PATH": "", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    command = [sys.executable, "-c", WRITE, *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trackio")
    write(folder, "first <b>")
    return folder


@pytest.mark.parametrize("place", [".", "night.db", "night.db/first <b>"])
def test_run_has_what_was_logged(project, place):
    run = read_run(project / place)
    assert_layers_are_those_of(run.history, HISTORY)
    np.testing.assert_array_equal(run.history.loss, HISTORY.loss)
    assert run.name == "first <b>"
    assert run.settings == {"rate": "0.001", "kind": "adam"}
    assert run.curves["late"].values.tolist() == [math.inf]


def test_several_runs_are_listed_and_each_can_be_read(tmp_path):
    write(tmp_path, "first", "second/half")
    with pytest.raises(
        ConfigurationError, match=r"contains 2 runs; give one of them: .*night\.db/first' \(trackio run"
    ):
        read_run(tmp_path)
    assert read_run(tmp_path / "night.db/first").name == "first"
    assert len(read_run(tmp_path / "night.db/second/half").history) == 6
    with pytest.raises(ConfigurationError, match=r"third' is not a run: '.*night\.db' has first, second/half"):
        read_run(tmp_path / "night.db/third")


def test_damaged_database_is_refused_or_whole(project, tmp_path):
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "night.db"
    content = file.read_bytes()
    for number, end in enumerate(np.linspace(17, len(content) - 1, 8, dtype=int)):
        copy = tmp_path / f"cut{number}" / "night.db"
        copy.parent.mkdir()
        copy.write_bytes(content[:end])
        run = read_or_refused(copy, "damaged|not a trackio database|nor in another readable format")
        if run is not None:
            assert_layers_are_those_of(run.history, HISTORY)  # what was cut off had nothing in it


def test_other_databases_are_no_runs(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    with pytest.raises(ConfigurationError, match="is neither a saved attention history nor in another readable format"):
        read_run(tmp_path / "other.db")


def test_rows_without_a_name_and_databases_without_configurations_are_no_obstacle(tmp_path):
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, run_name TEXT, step INT, metrics)"
        )
        rows = [(None, None, 0, "{}"), (None, "a", 0, '{"loss": 3}'), ("x", "a", 1, '{"loss": 2}')]
        connection.executemany("INSERT INTO metrics (run_id, run_name, step, metrics) VALUES (?, ?, ?, ?)", rows)
    with pytest.raises(ConfigurationError, match=r"contains 2 runs; give one of them: '.*old\.db/a' .*old\.db/x'"):
        read_run(tmp_path / "old.db")
    assert read_run(tmp_path / "old.db/a").history.loss.tolist() == [3, 2]
    assert read_run(tmp_path / "old.db/x").history.loss.tolist() == [2]
