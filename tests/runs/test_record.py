"""Records of runs, written and read back."""

import dataclasses
import json

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


WRONG_EVENTS = [
    {"step": "a", "kind": "heads", "label": "cut"},
    {"step": None, "kind": "heads", "label": "cut"},
    {"step": 1, "kind": "heads", "label": "cut", "details": {"heads": [1]}},
    {"step": 1, "kind": "heads", "label": "cut", "details": [1]},
]
WRONG_FINDINGS = [{"step": "a"}, {"step": None}, {"evidence": {"modules": "many"}}, {"sites": 5}, {"severity": "high"}]


def stored_with(path, **changes):
    """Write a record whose header has these entries of its run."""
    a_record().save(path)
    with np.load(path) as file:
        content = dict(file)
    header = json.loads(str(content["header"]))
    header["run"] |= changes
    np.savez(path, **content | {"header": np.array(json.dumps(header))})


@pytest.mark.parametrize("event", WRONG_EVENTS, ids=str)
def test_event_that_can_not_be_is_refused(event, tmp_path):
    stored_with(tmp_path / "run.npz", events=[event])
    with pytest.raises(ConfigurationError, match=r"the record of the run in '.*' is damaged"):
        RunRecord.load(tmp_path / "run.npz")


@pytest.mark.parametrize("change", WRONG_FINDINGS, ids=str)
@pytest.mark.parametrize("kept_as", ["checked", "judged"])
def test_finding_that_can_not_be_is_refused(kept_as, change, tmp_path):
    finding = a_record().checked[0].as_json() | change
    judged = a_record().diagnosis.as_json() | {"findings": [finding]}
    stored_with(tmp_path / "run.npz", **{kept_as: [finding] if kept_as == "checked" else judged})
    with pytest.raises(ConfigurationError, match=r"the record of the run in '.*' is damaged"):
        RunRecord.load(tmp_path / "run.npz")


def test_names_that_are_numbers_are_read_as_text(tmp_path):
    finding = a_record().checked[0].as_json() | {"sites": [1], "message": 2}
    stored_with(tmp_path / "run.npz", checked=[finding], events=[{"step": 1, "kind": 5, "label": 7}])
    record = RunRecord.load(tmp_path / "run.npz")
    assert (record.checked[0].sites, record.checked[0].message) == (("1",), "2")
    assert (record.events[0].kind, record.events[0].label) == ("5", "7")
