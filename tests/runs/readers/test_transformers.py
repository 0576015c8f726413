"""Checkpoints of the transformers Trainer, and the log in them."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnwatch import ConfigurationError, RunStatus
from attnwatch.runs import read_run
from tests.support.kept_runs import assert_heads_are_those_of
from tests.support.transformers_training import train

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")
LOG = "trainer_state.json"


@pytest.mark.parametrize("place", [".", "checkpoint-20", f"checkpoint-20/{LOG}"])
def test_checkpoint_has_every_head_and_the_log_of_the_trainer(transformers_run, place):
    run = read_run(transformers_run.folder / place)
    assert_heads_are_those_of(run.history, transformers_run.history)
    assert len(run.history) == len(transformers_run.history)
    assert run.name.endswith("checkpoint-20")
    assert run.history.total_steps == 20
    assert {"loss", "learning_rate", "grad_norm"} <= run.curves.keys()
    assert run.curves["loss"].steps.tolist() == list(range(2, 21, 2))


def test_earlier_checkpoint_has_what_was_known_then(transformers_run):
    run = read_run(transformers_run.folder / "checkpoint-10")
    assert_heads_are_those_of(run.history, transformers_run.history)
    assert run.history.steps.tolist() == [0, 2, 4, 6, 8]


def test_log_alone_has_the_numbers_of_the_whole_model(transformers_run, tmp_path):
    shutil.copy(transformers_run.folder / "checkpoint-20" / LOG, tmp_path)
    run, recorded = read_run(tmp_path), transformers_run.history
    at = np.searchsorted(recorded.steps, run.history.steps)
    assert len(at) >= 2
    np.testing.assert_array_equal(recorded.steps[at], run.history.steps)
    assert run.history.sites == ("model",)
    expected = recorded["normalized_entropy"][at].mean((1, 2))
    np.testing.assert_allclose(run.history["normalized_entropy"][:, 0, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(run.history["max_logit"][:, 0, 0], recorded["max_logit"][at].max((1, 2)))
    assert run.source == "transformers Trainer log"


def test_without_a_monitor_the_loss_is_read(tmp_path):
    train(
        directory=tmp_path, save_strategy="steps", save_steps=20, logging_steps=1, eval_strategy="steps", eval_steps=10
    )
    run = read_run(tmp_path)
    assert run.history.sites == ()
    assert run.history.steps.tolist() == list(range(1, 21))
    assert np.isfinite(run.history.loss).all()
    assert run.history.total_steps == 20
    assert {"eval_loss", "learning_rate", "grad_norm"} <= run.curves.keys()
    assert run.diagnosis.status is RunStatus.UNDETERMINED
    assert "judged by its loss alone" in run.remarks[0]


def test_loss_of_the_log_is_taken_if_its_tag_is_asked_for(transformers_run):
    run = read_run(transformers_run.folder, loss_tag="loss")
    assert run.history.sites == ("model",)
    with pytest.raises(ConfigurationError, match=r"`loss_tag` 'nll' was not logged; logged tags: .*loss"):
        read_run(transformers_run.folder, loss_tag="nll")


def test_state_of_another_step_is_refused(transformers_run, tmp_path):
    shutil.copytree(transformers_run.folder / "checkpoint-20", tmp_path / "checkpoint-20")
    shutil.copy(transformers_run.folder / "checkpoint-10/attnwatch.pt", tmp_path / "checkpoint-20")
    with pytest.raises(
        ConfigurationError, match=r"has a attnwatch\.pt from another step or run beside it: move that file away"
    ):
        read_run(tmp_path)


@settings(max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.sampled_from([LOG, "attnwatch.pt"]))
def test_cut_checkpoint_is_refused_in_words(transformers_run, tmp_path_factory, share, name):
    folder = tmp_path_factory.mktemp("cut")
    for each in (LOG, "attnwatch.pt"):
        shutil.copy(transformers_run.folder / "checkpoint-20" / each, folder)
    content = (folder / name).read_bytes().rstrip()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigurationError, match=r"is not JSON|is damaged, or is not a checkpoint"):
        read_run(folder)


WRONG = {
    "a list": ([], "is not a Trainer state"),
    "no log": ({}, "is not a Trainer state"),
    "no steps": ({"log_history": [{"loss": 1.0}]}, "entry 0 of its log_history has no step"),
    "step that is text": ({"log_history": [{"step": "1"}]}, "entry 0 of its log_history has no step"),
    "huge step": ({"log_history": [{"step": 10**30, "loss": 1}]}, "it has a step of 31 digits"),
    "huge number": ({"log_history": [{"step": 1, "loss": 10**400}]}, "a number at step 1 is too large"),
    "texts": ({"log_history": [{"step": 1, "loss": "low", "x": True}]}, "no training loss under a usual name"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_log_that_can_not_be_is_refused_in_words(content, message, tmp_path):
    (tmp_path / LOG).write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=message):
        read_run(tmp_path)
