"""Tables of Lightning's CSVLogger."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnwatch import ConfigurationError
from attnwatch.runs import read_run
from tests.support.kept_runs import assert_layers_are_those_of

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")
NAMES = ("train_loss", "attention/normalized_entropy", "attention_max_logit/layer_0", 'rate, "of" <b>learning</b>')


@pytest.mark.parametrize("place", ["csv", "csv/version_0", "csv/version_0/metrics.csv"])
def test_table_has_what_the_monitor_recorded(lightning_run, place):
    run = read_run(lightning_run.folder / place)
    assert_layers_are_those_of(run.history, lightning_run.history)
    np.testing.assert_allclose(run.history.loss, lightning_run.history.loss, rtol=1e-6)
    assert (run.name, run.history.total_steps) == ("version_0", 12)
    assert run.curves["train_loss"].steps.tolist() == list(range(12))


@given(
    st.lists(st.dictionaries(st.sampled_from(NAMES), st.floats(width=32), min_size=1), min_size=1, max_size=20).filter(
        lambda rows: "train_loss" in rows[0]
    )
)
def test_cells_may_be_empty(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("table") / "metrics.csv"
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, sorted([*NAMES, "step"]))
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in enumerate(rows))
    run = read_run(file)
    loss = {step: row["train_loss"] for step, row in enumerate(rows) if "train_loss" in row}
    assert run.curves["train_loss"].steps.tolist() == list(loss)
    np.testing.assert_array_equal(run.curves["train_loss"].values, list(loss.values()))
    entropy = {step: row[NAMES[1]] for step, row in enumerate(rows) if NAMES[1] in row}
    if entropy:
        assert run.history.steps.tolist() == list(entropy)
        np.testing.assert_array_equal(run.history["normalized_entropy"][:, 0, 0], list(entropy.values()))
    else:
        assert run.history.sites == ()
        np.testing.assert_array_equal(run.history.loss, list(loss.values()))


@settings(max_examples=60)
@given(st.floats(0, 1, exclude_max=True))
def test_cut_table_is_refused_or_read_up_to_its_end(lightning_run, tmp_path_factory, share):
    content = (lightning_run.folder / "csv/version_0/metrics.csv").read_bytes()
    file = tmp_path_factory.mktemp("cut") / "metrics.csv"
    file.write_bytes(content[: int(share * len(content))])
    whole = read_run(lightning_run.folder / "csv")
    try:
        run = read_run(file)
    except ConfigurationError:
        return
    for name, curve in run.curves.items():
        known = dict(zip(*whole.curves[name], strict=True))
        assert [known[step] for step in curve.steps] == pytest.approx(curve.values.tolist(), nan_ok=True)


WRONG = {
    "empty": ("", "its first line must have distinct column names, one of them step"),
    "no step": ("a,b\n1,2\n", "its first line must have distinct column names, one of them step"),
    "a name twice": ("step,a,a\n1,2,3\n", "its first line must have distinct column names"),
    "too many cells": ("step,loss\n1,2,3\n", "line 2 has 3 cells, not 2"),
    "text": ("step,loss\n1,2\n2,many\n", "line 3 has a cell that is not a number"),
    "step that is none": ("step,loss\n1.5,2\n", "line 2 has a cell that is not a number"),
    "step that is nan": ("step,loss\nnan,2\n", "line 2 has a cell that is not a number"),
    "no cell for the step": ("step,loss\n,2\n", "line 2 has a cell that is not a number"),
    "huge step": (f"step,loss\n{10**30},2\n", "it has a step of 31 digits"),
    "open quote": ('step,loss\n1,"2\n', "is not a table in UTF-8"),
    "no loss": ("step,objective\n1,2\n", "no training loss under a usual name .*; logged tags: objective"),
    "other bytes": ("step,loss\n1,\udcff\n", "is not a table in UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_table_that_can_not_be_is_refused_in_words(content, message, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=rf"`run`: '.*metrics\.csv' .*{message}"):
        read_run(tmp_path)


def test_later_number_of_a_step_counts(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n3,1\n2,nan\n3,inf\n2,5\n")
    curve = read_run(tmp_path).curves["loss"]
    assert curve.steps.tolist() == [2, 3]
    assert curve.values.tolist() == [5, math.inf]


SAVED_ANEW = {
    "by Excel": "\ufeffstep,loss\r\n0,3\r\n1,2\r\n",
    "by pandas": "step,loss\n0.0,3\n1.0,2\n",
    "with spaces": "step, loss\n0, 3\n1, 2\n",
    "with empty lines": "step,loss\n0,3\n\n1,2\n\n",
    "by two programs": "step,loss\n0,3\nstep,loss\n1,2\n",
}


@pytest.mark.parametrize("content", SAVED_ANEW.values(), ids=SAVED_ANEW)
def test_table_that_other_programs_have_saved_is_read(content, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content.encode())
    curve = read_run(tmp_path).curves["loss"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 1], [3, 2])
