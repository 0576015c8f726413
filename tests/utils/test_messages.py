"""Warnings come once a run, stop nothing, and reach the user."""

import logging
import warnings

import pytest
import torch

import attnwatch
from attnwatch.errors import AttnwatchWarning
from attnwatch.utils.messages import WarnOnce, warn


def test_a_warning_is_shown_as_often_as_it_is_given():
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("default")  # which shows a warning of one line once
        for _ in range(2):
            warn("nothing was observed")
    assert [str(each.message) for each in given] == ["attnwatch: nothing was observed"] * 2
    assert given[0].category is AttnwatchWarning
    assert given[0].filename == __file__


def test_a_warning_points_to_the_line_of_the_script_that_led_to_it():
    model = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def train():
        with attnwatch.AttentionRecorder(model, every_n_steps=1, flush_every=1) as recorder:
            for step in range(200):
                with recorder.step(step):  # contextlib runs this, and the loss that is missing is found there
                    model(*[torch.zeros(1, 3, 8)] * 3)

    with pytest.warns() as given:
        train()
    assert [(each.category, each.filename) for each in given] == [(AttnwatchWarning, __file__)]


@pytest.mark.logs_warnings
@pytest.mark.parametrize("always", [True, False])
def test_a_warning_that_is_an_error_is_logged_instead(caplog, always):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("nothing was observed", always=always)
    assert caplog.record_tuples == [("attnwatch", logging.WARNING, "attnwatch: nothing was observed")]


@pytest.mark.logs_warnings
@pytest.mark.parametrize("always", [True, False])
def test_only_what_must_be_heard_is_logged_where_warnings_are_ignored(caplog, always):
    with warnings.catch_warnings(record=True) as given:
        warnings.filterwarnings("error", message="something else")
        warnings.filterwarnings("ignore")
        warn("nothing was observed", always=always)
    assert not given
    assert [record.getMessage() for record in caplog.records] == ["attnwatch: nothing was observed"] * always


def test_a_message_is_given_once_whatever_its_details():
    once = WarnOnce()

    def train():
        once("a site is not observed", ": 'a'")
        once("a site is not observed", ": 'b'")
        once("another thing")

    with pytest.warns(AttnwatchWarning) as given:
        train()
    assert [str(each.message) for each in given] == [
        "attnwatch: a site is not observed: 'a'",
        "attnwatch: another thing",
    ]
    assert given[0].filename == __file__
