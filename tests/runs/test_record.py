"""Records of runs, written and read back."""

import dataclasses

import numpy as np
import pytest

from attnwatch import AttentionHistory, ConfigurationError
from attnwatch.recorder.history import write_history
from attnwatch.runs import RunRecord
from tests.support.records import a_history, a_record


def test_record_survives_its_file(tmp_path):
    record = a_record()
    record.save(tmp_path / "run.npz")
    again = RunRecord.load(tmp_path / "run.npz")
    for name in (
        "name",
        "events",
        "checked",
        "ruled_out",
        "checkup",
        "settings",
        "environment",
        "source",
        "remarks",
        "judged",
    ):
        assert getattr(again, name) == getattr(record, name), name
    assert str(again.diagnosis) == str(record.diagnosis)
    assert "eval_mode" in {finding.kind.value for finding in again.diagnosis.findings}
    np.testing.assert_array_equal(again.curves["learning_rate"].values, record.curves["learning_rate"].values)


def test_verdict_that_a_run_was_given_is_kept(tmp_path):
    judged = dataclasses.replace(a_record().diagnosis, risk=0.25)
    dataclasses.replace(a_record(), judged=judged).save(tmp_path / "run.npz")
    assert RunRecord.load(tmp_path / "run.npz").diagnosis == judged


def test_history_reads_the_file_of_a_record_and_the_other_way_round(tmp_path):
    record = a_record()
    record.save(tmp_path / "run.npz")
    record.history.save(tmp_path / "history.npz")
    np.testing.assert_array_equal(
        AttentionHistory.load(tmp_path / "run.npz")["entropy"],
        RunRecord.load(tmp_path / "history.npz").history["entropy"],
    )
    assert RunRecord.load(tmp_path / "history.npz").name == "history"


@pytest.mark.parametrize("damage", [{"events": [{"step": 1}]}, {"curves": {"loss": 3}}, {}, [], {"name": None}])
def test_damaged_record_is_refused_by_name(tmp_path, damage):
    write_history(a_history(), tmp_path / "run.npz", extra={"run": damage})
    with pytest.raises(ConfigurationError, match=r"run\.npz.*damaged"):
        RunRecord.load(tmp_path / "run.npz")
