"""Records of runs, written and read back."""

import numpy as np
import pytest

from attnwatch import AttentionHistory, ConfigurationError, Finding, FindingKind
from attnwatch.recorder.history import write_history
from attnwatch.runs import Curve, RunEvent, RunRecord
from attnwatch.statistics import Statistic


def a_history(num_steps: int = 8, num_sites: int = 2) -> AttentionHistory:
    drawn = np.random.default_rng(0).random((len(Statistic.registry), num_steps, num_sites, 3), dtype=np.float32)
    values = dict(zip(Statistic.registry, drawn, strict=True))
    sites = tuple(f"layers.{index}.attn" for index in range(num_sites))
    return AttentionHistory(np.arange(num_steps) * 10, sites, values, np.linspace(3, 1, num_steps), total_steps=100)


def a_record() -> RunRecord:
    finding = Finding(FindingKind("eval_mode"), ("layers.0",), 0, 0.8, "in eval mode", {"modules": 3.0})
    return RunRecord(
        "run <1>",
        a_history(),
        curves={"learning_rate": Curve(np.array([0, 50]), np.array([1e-3, 5e-4]))},
        events=(RunEvent(40, "heads", "3 heads go", "3 of 6 heads go", {"heads": 3.0, "criterion": "gate"}),),
        checked=(finding,),
        ruled_out=frozenset({"batch_mixing"}),
        checkup={"eval_mode": "FOUND: in eval mode"},
        settings={"every_n_steps": "10"},
        environment={"torch": "2.13"},
        remarks=("Read it so.",),
    )


def test_record_survives_its_file(tmp_path):
    record = a_record()
    record.save(tmp_path / "run.npz")
    again = RunRecord.load(tmp_path / "run.npz")
    for name in ("name", "events", "checked", "ruled_out", "checkup", "settings", "environment", "source", "remarks"):
        assert getattr(again, name) == getattr(record, name), name
    assert str(again.diagnosis) == str(record.diagnosis)
    assert "eval_mode" in {finding.kind.value for finding in again.diagnosis.findings}
    np.testing.assert_array_equal(again.curves["learning_rate"].values, record.curves["learning_rate"].values)


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
