"""Which steps are observed, which query rows are looked at, and what is kept of a step."""

import contextlib
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.recorder import AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import HEADS, LAYERS, TOKENS, gpt, token_ids

DUE = {
    "every step": (1, [0, 1, 2], [0, 1, 2]),
    "multiples": (10, range(25), [0, 10, 20]),
    "first step at or after a multiple": (10, range(0, 60, 7), [0, 14, 21, 35, 42, 56]),
    "larger strides than the interval": (10, [0, 25, 50], [0, 25, 50]),
    "the first step whatever it is": (10, range(53, 75), [53, 60, 70]),
    "micro-batches": (2, [0, 0, 1, 1, 2, 2], [0, 2]),
    "went back to a multiple": (10, [0, 10, 20, 10, 11, 20], [0, 10, 20]),
    "went back to the start": (10, [0, 10, 20, 0, 1], [0]),
    "went back between multiples": (10, [0, 10, 20, 5, 8, 11, 14, 17, 20], [0, 10, 11, 20]),
    "went back behind a step that was not observed": (10, [0, 11, 13, 12, 13, 20], [0, 11, 20]),
}


def record(steps, *, model=None, **options):
    model = model or gpt()
    with AttentionRecorder(model, **options) as recorder:
        for step in steps:
            with recorder.step(step):
                model(token_ids(seed=step))
        return recorder.history()


@pytest.mark.parametrize(("every", "steps", "expected"), DUE.values(), ids=DUE)
@pytest.mark.parametrize("flush_every", [1, 5])
def test_steps_that_are_observed(every: int, steps, expected: list[int], flush_every: int):
    history = record(steps, every_n_steps=every, flush_every=flush_every, num_query_rows=1)
    assert history.steps.tolist() == expected
    assert len(history) == len(expected)


@settings(max_examples=25)
@given(every=st.integers(1, 7), strides=st.lists(st.integers(0, 9), max_size=20))
def test_first_step_at_or_after_each_multiple(every: int, strides: list[int]):
    steps = np.cumsum([0, *strides]).tolist()
    expected = {min(step for step in steps if step >= multiple) for multiple in range(0, steps[-1] + 1, every)}
    model, x = torch.nn.MultiheadAttention(4, 1), torch.ones(2, 1, 4)
    with AttentionRecorder(model, every_n_steps=every, num_query_rows=1) as recorder:
        for step in steps:
            with recorder.step(step):
                model(x, x, x)
        assert recorder.history().steps.tolist() == sorted(expected)


def test_step_that_is_repeated_later_replaces_the_first():
    history = record([0, 10, 10, 9, 10], every_n_steps=10, num_query_rows=None)
    expected = record([10], num_query_rows=None)
    assert history.steps.tolist() == [0, 10]
    np.testing.assert_array_equal(history["entropy"][1], expected["entropy"][0])


class Raising:
    """A hook that raises once, in a forward that has passed all of its attention."""

    def __init__(self, model: torch.nn.Module, error: type[BaseException] = RuntimeError):
        self.error = error
        self.handle = model.layers[-1]["attention"].register_forward_hook(self)

    def __call__(self, *_) -> None:
        self.handle.remove()
        raise self.error("out of memory")


def step_with(recorder: AttentionRecorder, model, ids, *, step: int = 0) -> None:
    with recorder.step(step):
        loss = model(ids)
        loss.backward()
        recorder.record_loss(loss)


def retry_forward(recorder: AttentionRecorder, model) -> None:
    with recorder.step(0):
        recorder.record_loss(model(token_ids(seed=1)))
        Raising(model)
        with contextlib.suppress(RuntimeError):
            model(token_ids(seed=2))
        recorder.record_loss(model(token_ids(seed=3)))


def retry_forward_while_handling(recorder: AttentionRecorder, model) -> None:
    with recorder.step(0):
        recorder.record_loss(model(token_ids(seed=1)))
        Raising(model)
        try:
            model(token_ids(seed=2))
        except RuntimeError:
            recorder.record_loss(model(token_ids(seed=3)))


def give_forward_up(recorder: AttentionRecorder, model) -> None:
    step_with(recorder, model, token_ids(seed=1))
    step_with(recorder, model, token_ids(seed=3))
    Raising(model)
    with recorder.step(0), contextlib.suppress(RuntimeError):
        model(token_ids(seed=2))


def repeat_step(recorder: AttentionRecorder, model) -> None:
    step_with(recorder, model, token_ids(seed=1))
    with contextlib.suppress(RuntimeError), recorder.step(0):
        recorder.record_loss(model(token_ids(seed=2)))
        raise RuntimeError("in the backward")
    step_with(recorder, model, token_ids(seed=3))


def repeat_step_interrupted_in_forward(recorder: AttentionRecorder, model) -> None:
    step_with(recorder, model, token_ids(seed=1))
    Raising(model, KeyboardInterrupt)
    with contextlib.suppress(KeyboardInterrupt):
        step_with(recorder, model, token_ids(seed=2))
    step_with(recorder, model, token_ids(seed=3))


RAISED = (
    retry_forward,
    retry_forward_while_handling,
    give_forward_up,
    repeat_step,
    repeat_step_interrupted_in_forward,
)


@pytest.mark.parametrize("train", RAISED)
def test_what_raised_does_not_count(train):
    """Micro-batches of the same step that ended do."""
    histories = []
    for each in (train, lambda recorder, model: [step_with(recorder, model, token_ids(seed=seed)) for seed in (1, 3)]):
        model = gpt()
        with AttentionRecorder(model, num_query_rows=None) as recorder:
            each(recorder, model)
            histories.append(recorder.history())
    history, expected = histories
    assert history.steps.tolist() == expected.steps.tolist() == [0]
    np.testing.assert_array_equal(history.loss, expected.loss)
    for name in Statistic.registry:
        np.testing.assert_allclose(history[name], expected[name], rtol=0, atol=1e-6, err_msg=name)


def test_step_that_raised_and_is_not_repeated_is_no_observation():
    model = gpt()
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        step_with(recorder, model, token_ids())
        with contextlib.suppress(RuntimeError), recorder.step(1):
            model(token_ids())
            raise RuntimeError
        step_with(recorder, model, token_ids(), step=2)
        assert recorder.history().steps.tolist() == [0, 2]


def test_shapes_and_what_a_history_has():
    history = record(range(2), every_n_steps=1)
    assert history.sites == tuple(f"layers.{layer}.attention" for layer in range(LAYERS))
    assert history.steps.dtype == np.int64
    assert set(history.values) == set(Statistic.registry)
    for name in Statistic.registry:
        assert history[name].shape == (2, LAYERS, HEADS)
        assert history[name].dtype == np.float32
    with pytest.raises(KeyError, match="'entorpy' is not in this history; it has: content_sensitivity, distance"):
        history["entorpy"]


def test_history_before_the_first_step_is_empty():
    with AttentionRecorder(gpt()) as recorder:
        history = recorder.history()
    assert len(history) == 0
    assert history["entropy"].shape[:2] == (0, LAYERS)


def test_history_shows_the_open_step_and_leaves_it_open():
    model = gpt()
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        for _ in range(2):
            with recorder.step(0):
                model(token_ids())
            history = recorder.history()
            assert history.steps.tolist() == [0]
    np.testing.assert_allclose(history["entropy"], record([0], num_query_rows=None)["entropy"], atol=1e-5)


def test_flushed_only_history_transfers_nothing_of_the_open_step():
    model = gpt()
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            model(token_ids())
        assert len(recorder.history(flushed_only=True)) == 0
        assert recorder.num_observations == 0
        recorder.flush(finish_step=True)
        assert recorder.num_observations == 1
        assert recorder.history(flushed_only=True).steps.tolist() == [0]


def test_query_rows_depend_on_seed_and_step_only():
    options = {"num_query_rows": 4, "every_n_steps": 10}
    history, again, alone, other = (
        record(steps, seed=seed, **options) for steps, seed in (([0, 10], 3), ([0, 10], 3), ([10], 3), ([0, 10], 4))
    )
    for name in Statistic.registry:
        np.testing.assert_array_equal(again[name], history[name])
        np.testing.assert_array_equal(alone[name][0], history[name][1])
    assert not np.array_equal(other["entropy"], history["entropy"])


def test_sampled_rows_come_with_their_standard_error():
    all_rows, sampled = (record([0], num_query_rows=rows) for rows in (None, TOKENS // 2))
    assert (all_rows["normalized_entropy_stderr"] == 0).all()
    assert (sampled["normalized_entropy_stderr"] > 0).all()
    assert not np.array_equal(sampled["normalized_entropy"], all_rows["normalized_entropy"])


def test_loss_of_observed_steps_is_recorded():
    model = gpt()
    losses = {}
    with AttentionRecorder(model, every_n_steps=2, flush_every=1) as recorder:
        for step in range(5):
            with recorder.step(step):
                loss = model(token_ids(seed=step))
            if step != 4:
                recorder.record_loss(loss)
            losses[step] = loss.item()
        history = recorder.history()
    assert history.loss.dtype == np.float64
    np.testing.assert_allclose(history.loss, [losses[0], losses[2], np.nan], rtol=1e-6)


def test_loss_of_micro_batches_is_their_mean():
    model = gpt()
    with AttentionRecorder(model) as recorder:
        for loss in (1.0, torch.tensor([2.0, 4.0]), torch.tensor(5, dtype=torch.bfloat16)):
            with recorder.step(0):
                model(token_ids())
            recorder.record_loss(loss)
        assert recorder.history().loss.tolist() == [3.0]


def test_loss_outside_of_a_step_is_not_recorded():
    model = gpt()
    with AttentionRecorder(model) as recorder:
        with pytest.warns(AttnwatchWarning, match="`record_loss` was called outside of a step"):
            recorder.record_loss(1.0)
        with recorder.step(0):
            model(token_ids())
        recorder.flush(finish_step=True)
        recorder.record_loss(2.0)
        with recorder.step(10):
            model(token_ids())
        history = recorder.history()
    assert history.steps.tolist() == [0, 10]
    assert np.isnan(history.loss).all()


WRONG = {
    "every_n_steps": ({"every_n_steps": 0}, "`every_n_steps` must be an integer of at least 1, got 0."),
    "every_n_steps, float": ({"every_n_steps": 2.0}, "`every_n_steps` must be an integer of at least 1, got 2.0."),
    "every_n_steps, bool": ({"every_n_steps": True}, "`every_n_steps` must be an integer of at least 1, got True."),
    "num_query_rows": ({"num_query_rows": 0}, "`num_query_rows` must be an integer of at least 1 or None, got 0."),
    "flush_every": ({"flush_every": -1}, "`flush_every` must be an integer of at least 1 or None, got -1."),
    "max_history": ({"max_history": 3}, "`max_history` must be an integer of at least 16, got 3."),
    "seed": ({"seed": None}, "`seed` must be an integer of at least 0, got None."),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(options: dict, message: str):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        AttentionRecorder(gpt(), **options)


def test_model_must_be_a_module():
    with pytest.raises(ConfigurationError, match=re.escape("`model` must be a torch.nn.Module, got dict.")):
        AttentionRecorder({})


def test_wrong_arguments_are_value_errors_too():
    with pytest.raises(ValueError, match="`every_n_steps`"):
        AttentionRecorder(gpt(), every_n_steps=0)


@pytest.mark.parametrize("step", [1.0, -1, None, True])
def test_wrong_step_is_an_error_and_leaves_the_recorder_usable(step):
    model, expected = gpt(), "`global_step` must be an integer of at least 0"
    with AttentionRecorder(model) as recorder:
        with pytest.raises(ConfigurationError, match=expected), recorder.step(step):
            pass
        with recorder.step(np.int64(0)):
            model(token_ids())
        assert recorder.history().steps.tolist() == [0]
