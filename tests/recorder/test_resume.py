"""Killed and resumed equals uninterrupted, bit for bit."""

import io
import itertools
import re

import numpy as np
import pytest
import torch

from attnwatch import ConfigurationError
from attnwatch.layers import LayerStatistic
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import gpt, llama, token_ids

# Two micro-batches for each of 50 steps; every second step is observed, more often than the history has room for.
STEPS = 50
OPTIONS = {"every_n_steps": 2, "num_query_rows": 5, "flush_every": 3, "max_history": 16}
MICRO_BATCHES = list(itertools.product(range(STEPS), range(2)))
INTERRUPTED_AFTER = {
    "nothing": 0,
    "half of an observed step": 1,
    "an observed step": 2,
    "a step that is not observed": 4,
    "half of a later observed step, thinned": 2 * 44 + 1,
    "a later step that is not observed, thinned": 2 * 46,
}


def train(recorder: AttentionRecorder, model, micro_batches) -> None:
    for step, micro_batch in micro_batches:
        with recorder.step(step):
            loss = model(token_ids(batch=2, tokens=8, seed=2 * step + micro_batch))
        recorder.record_loss(loss)


def through_a_checkpoint(state: dict) -> dict:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def assert_identical(history: AttentionHistory, expected: AttentionHistory):
    assert history.sites == expected.sites
    assert history.coverage == expected.coverage
    np.testing.assert_array_equal(history.steps, expected.steps)
    np.testing.assert_array_equal(history.loss, expected.loss)
    for name in (*Statistic.registry, *LayerStatistic.registry):
        np.testing.assert_array_equal(history[name], expected[name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted() -> AttentionHistory:
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        train(recorder, model, MICRO_BATCHES)
        return recorder.history()


@pytest.mark.parametrize("done", INTERRUPTED_AFTER.values(), ids=INTERRUPTED_AFTER)
def test_resumed_run(uninterrupted: AttentionHistory, done: int):
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        train(recorder, model, MICRO_BATCHES[:done])
        state = through_a_checkpoint(recorder.state_dict())
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        recorder.load_state_dict(state)
        train(recorder, model, MICRO_BATCHES[done:])
        assert_identical(recorder.history(), uninterrupted)
        assert recorder.num_observations == STEPS // 2 - 1  # and the open step


def test_taking_a_state_changes_nothing(uninterrupted: AttentionHistory):
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        for micro_batch in MICRO_BATCHES:
            train(recorder, model, [micro_batch])
            recorder.state_dict()
        assert_identical(recorder.history(), uninterrupted)


def test_state_is_not_changed_by_what_comes_later():
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        train(recorder, model, MICRO_BATCHES[:5])
        state = recorder.state_dict()
        saved = through_a_checkpoint(state)
        train(recorder, model, MICRO_BATCHES[5:9])
    torch.testing.assert_close(state["pending"], saved["pending"], rtol=0, atol=0)
    torch.testing.assert_close(state["history"]["values"], saved["history"]["values"], rtol=0, atol=0, equal_nan=True)


def test_restored_state_replaces_what_was_recorded(uninterrupted: AttentionHistory):
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        train(recorder, model, MICRO_BATCHES[:9])
        state = recorder.state_dict()
        expected = recorder.history()
        train(recorder, model, MICRO_BATCHES[9:20])
        recorder.load_state_dict(state)
        assert_identical(recorder.history(), expected)
        train(recorder, model, MICRO_BATCHES[9:])
        assert_identical(recorder.history(), uninterrupted)


def test_resumed_after_going_back_between_multiples():
    """The next step that is due depends on the last one, observed or not."""
    steps = [(step, 0) for step in (0, 10, 20, 5, 8)]
    model = gpt(layers=1)
    with AttentionRecorder(model, every_n_steps=10) as recorder:
        train(recorder, model, steps)
        state = through_a_checkpoint(recorder.state_dict())
    with AttentionRecorder(model, every_n_steps=10) as recorder:
        recorder.load_state_dict(state)
        train(recorder, model, [(11, 0)])
        assert recorder.history().steps[-1] == 11


def test_statistic_that_an_older_version_did_not_have_is_nan():
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        train(recorder, model, MICRO_BATCHES[:6])
        recorder.flush(finish_step=True)
        expected = recorder.history()
        state = recorder.state_dict()
        *kept, missing = state["history"]["statistics"]
        state["history"]["statistics"] = kept[::-1]
        state["history"]["values"] = [values[:-1].flip(0) for values in state["history"]["values"]]
        recorder.load_state_dict(through_a_checkpoint(state))
        history = recorder.history()
    assert history.steps.tolist() == [0, 2]
    assert np.isnan(history[missing]).all()
    for name in kept:
        np.testing.assert_array_equal(history[name], expected[name], err_msg=name)


def train_layers(recorder: AttentionRecorder, model, optimizer, micro_batches) -> None:
    """Two micro-batches for each step of the optimizer."""
    for step, micro_batch in micro_batches:
        with recorder.step(step):
            ids = token_ids(batch=2, tokens=8, seed=2 * step + micro_batch)
            model(input_ids=ids, labels=ids).loss.backward()
        if micro_batch == 1:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("done", [4, 5, 6, 10, 44], ids=lambda done: f"after {done} micro-batches")
def test_layer_statistics_of_a_resumed_run(done: int):
    def begin():
        model = llama(layers=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, optimizer, AttentionRecorder(model, **OPTIONS, optimizers=optimizer)

    model, optimizer, recorder = begin()
    with recorder:
        train_layers(recorder, model, optimizer, MICRO_BATCHES[:48])
        expected = recorder.history()
    model, optimizer, recorder = begin()
    with recorder:
        train_layers(recorder, model, optimizer, MICRO_BATCHES[:done])
        state = through_a_checkpoint({"recorder": recorder.state_dict(), "optimizer": optimizer.state_dict()})
    weights, gradients = model.state_dict(), [each.grad for each in model.parameters()]
    model, optimizer, recorder = begin()
    model.load_state_dict(weights)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.load_state_dict(state["optimizer"])
    with recorder:
        recorder.load_state_dict(state["recorder"])
        train_layers(recorder, model, optimizer, MICRO_BATCHES[done:48])
        assert_identical(recorder.history(), expected)
    assert all(np.isfinite(column).all() for column in expected.layers.values())


def test_state_of_a_version_without_layer_statistics_is_continued():
    model = gpt(layers=1)
    with AttentionRecorder(model, **OPTIONS) as recorder:
        train(recorder, model, MICRO_BATCHES[:6])
        recorder.flush(finish_step=True)
        state = recorder.state_dict()
        del state["history"]["layers"], state["history"]["layer_statistics"], state["pending"]["layers"]
        recorder.load_state_dict(through_a_checkpoint(state))
        train(recorder, model, MICRO_BATCHES[6:12])
        history = recorder.history()
    assert history.steps.tolist() == [0, 2, 4]
    assert np.isnan(history["weight_norm"][:2]).all()
    assert np.isfinite(history["weight_norm"][2]).all()


def test_state_of_another_model_is_refused():
    with AttentionRecorder(gpt(layers=1)) as recorder:
        state = recorder.state_dict()
    expected = (
        "`state` was recorded at the sites ['layers.0.attention'], but this model has "
        "['model.layers.0.self_attn', 'model.layers.1.self_attn']: resume with the same model and `sites`, or start"
    )
    model = llama()
    with AttentionRecorder(model) as recorder:
        with pytest.raises(ConfigurationError, match=re.escape(expected)):
            recorder.load_state_dict(state)
        with recorder.step(0):
            model(token_ids())
        assert recorder.history().steps.tolist() == [0]  # nothing was taken over


def test_state_of_another_version_is_refused():
    with AttentionRecorder(gpt()) as recorder:
        state = recorder.state_dict() | {"format": 99}
        with pytest.raises(ConfigurationError, match="`state` has format 99, expected 1: it was written by another"):
            recorder.load_state_dict(state)


@pytest.mark.cuda
def test_resumed_on_the_device_in_the_middle_of_a_step():
    model, ids = gpt(layers=1).cuda(), token_ids().cuda()
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            recorder.record_loss(model(ids))
        state = through_a_checkpoint(recorder.state_dict())
        once = recorder.history()
    with AttentionRecorder(model) as recorder:
        recorder.load_state_dict(state)
        with recorder.step(0):
            recorder.record_loss(model(ids))
        history = recorder.history()
    np.testing.assert_allclose(history["entropy"], once["entropy"], rtol=1e-5)
    np.testing.assert_allclose(history.loss, once.loss, rtol=1e-5)
