"""Histories: bounded however long the run, and files that are whole or not there."""

import io
import itertools
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnwatch import ConfigurationError
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.recorder.buffer import HistoryBuffer, Observation
from attnwatch.statistics import Statistic
from tests.support.models import gpt, token_ids


def observation(step: int, *, heads: int = 1, sites: int = 1) -> Observation:
    return Observation(step, np.full((len(Statistic.registry), sites, heads), step, dtype=np.float32), loss=step / 2)


def filled(steps, max_observations: int) -> HistoryBuffer:
    buffer = HistoryBuffer(["site"], tuple(Statistic.registry), max_observations)
    for step in steps:
        buffer.append(observation(step))
    return buffer


@settings(max_examples=60)
@given(count=st.integers(1, 900), max_observations=st.integers(16, 70))
def test_thinned_history(count: int, max_observations: int):
    buffer = filled(range(count), max_observations)
    steps = buffer.history({}).steps.tolist()
    assert buffer.num_observations == count
    assert len(steps) <= max_observations
    assert len(steps) == count or len(steps) > max_observations // 3
    assert steps[0] == 0
    newest = min(count, max_observations // 4)
    assert steps[-newest:] == list(range(count - newest, count))
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    even = 2 * count / (max_observations - newest)  # a stride doubles when that of half the size is too fine
    assert all(gap <= max(1, even) for gap in gaps)


@settings(max_examples=30)
@given(first=st.integers(1, 300), back_to=st.integers(0, 300), second=st.integers(1, 300))
def test_history_that_went_back_is_ascending_and_bounded(first: int, back_to: int, second: int):
    buffer = filled([*range(first), *range(back_to, back_to + second)], max_observations=16)
    steps = buffer.history({}).steps.tolist()
    assert steps == sorted(set(steps))
    assert len(steps) <= 16
    newest = min(second, 4)
    assert steps[-newest:] == list(range(back_to + second - newest, back_to + second))


def test_values_stay_with_their_step():
    history = filled(range(100), max_observations=16).history({"site": "observed"})
    for name in Statistic.registry:
        assert history[name][:, 0, 0].tolist() == history.steps.tolist()
    assert (history.loss * 2).tolist() == history.steps.tolist()


def test_fewer_heads_are_filled_up_with_nan():
    buffer = HistoryBuffer(["site"], tuple(Statistic.registry), 16)
    buffer.append(observation(0, heads=3))
    buffer.append(observation(1, heads=2))
    entropy = buffer.history({})["entropy"][:, 0]
    np.testing.assert_array_equal(entropy, [[0, 0, 0], [1, 1, np.nan]])


def test_recorded_history_is_bounded():
    model = gpt(layers=1)
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=1, max_history=16) as recorder:
        for step in range(40):
            with recorder.step(step):
                model(token_ids(batch=1, tokens=4))
            assert len(recorder.history(flushed_only=True)) <= 16
    steps = recorder.history().steps.tolist()
    assert len(steps) <= 16 + 1  # and the open step
    assert steps[-4:] == [36, 37, 38, 39]


@pytest.fixture
def history() -> AttentionHistory:
    model = gpt()
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        for step in range(3):
            with recorder.step(step):
                loss = model(token_ids())
            recorder.record_loss(loss)
        return recorder.history()


def test_saved_history_loads_equal(history: AttentionHistory, tmp_path: Path):
    path = tmp_path / "history"  # no ending is added
    history.save(path)
    loaded = AttentionHistory.load(str(path))
    assert loaded.sites == history.sites
    assert loaded.coverage == history.coverage
    assert loaded.values.keys() == history.values.keys()
    for array, expected in [
        (loaded.steps, history.steps),
        (loaded.loss, history.loss),
        *((loaded[name], history[name]) for name in Statistic.registry),
    ]:
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    assert os.listdir(tmp_path) == ["history"]


def test_saved_history_has_no_pickle(history: AttentionHistory, tmp_path: Path):
    history.save(tmp_path / "history.npz")
    with np.load(tmp_path / "history.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert json.loads(str(file["header"]))["sites"] == list(history.sites)


def test_empty_history_is_saved_too(tmp_path: Path):
    with AttentionRecorder(gpt()) as recorder:
        recorder.history().save(tmp_path / "empty.npz")
    assert len(AttentionHistory.load(tmp_path / "empty.npz")) == 0


def test_history_of_sites_that_were_never_called_is_saved_too(tmp_path: Path):
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        for step in range(3):
            with recorder.step(step):  # without a call of the model
                recorder.record_loss(1.0)
    recorder.history().save(tmp_path / "run.npz")
    loaded = AttentionHistory.load(tmp_path / "run.npz")
    assert loaded.loss.tolist() == [1, 1, 1]
    assert loaded["entropy"].shape == (3, 1, 1)
    assert np.isnan(loaded["entropy"]).all()


def test_failed_save_leaves_the_old_file(history: AttentionHistory, tmp_path: Path, monkeypatch):
    path = tmp_path / "history.npz"
    history.save(path)
    before = path.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="no space left"):
        history.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["history.npz"]


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, header=np.array([{"format": 1}], dtype=object))
    return stream.getvalue()


def saved_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", pickle.dumps({"format": 1}), pickled(), saved_array()],
    ids=["empty", "text", "pickle", "pickled arrays", "one array"],
)
def test_other_file_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "history.npz"
    path.write_bytes(content)
    with pytest.raises(
        ConfigurationError, match=re.escape(f"`path`: {str(path)!r} is not a saved attention history (")
    ):
        AttentionHistory.load(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_file_is_refused(history: AttentionHistory, tmp_path: Path, share: float):
    path = tmp_path / "history.npz"
    history.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConfigurationError, match="is not a saved attention history"):
        AttentionHistory.load(path)


def test_damaged_file_is_refused(history: AttentionHistory, tmp_path: Path):
    path = tmp_path / "history.npz"
    history.save(path)
    damaged = bytearray(path.read_bytes())
    damaged[200:400] = bytes(200)
    path.write_bytes(damaged)
    with pytest.raises(ConfigurationError, match="is not a saved attention history"):
        AttentionHistory.load(path)


def test_newer_format_is_refused(tmp_path: Path):
    path = tmp_path / "history.npz"
    np.savez(path, header=np.array(json.dumps({"format": 2})))
    expected = f"`path`: {str(path)!r} has format 2, this version reads 1; upgrade attnwatch."
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        AttentionHistory.load(path)


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        AttentionHistory.load(tmp_path / "nowhere.npz")
