"""The page about a run, written by a monitor in real trainings by each trainer."""

import os

import numpy as np
import pytest

from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.callbacks.run_report import PAGE_NAME
from attnwatch.runs import RATE_CURVE, read_run
from tests.support.models import llama
from tests.support.pages import visible_words

pytestmark = [
    pytest.mark.writes_pages,
    pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning"),
]


def _words(path):
    return visible_words(path.read_text())


def test_page_lies_beside_the_logs_and_says_what_the_monitor_says(training):
    monitor = training.callbacks.AttentionMonitor(every_n_steps=1)
    pruning = training.callbacks.HeadPruning(0.5, start=4, end=8, num_cuts=1, guard=None)
    training.train(monitor, pruning)
    page = monitor.report_path
    assert page.name == PAGE_NAME
    assert training.directory in page.parents
    words = _words(page)
    assert "attnwatch" in words
    assert "every_n_steps 1" in words
    assert "4 of 8 heads removed; the target was 50%" in words
    record = read_run(page.with_suffix(".npz"))
    assert record.diagnosis == monitor.diagnosis or str(record.diagnosis) == str(monitor.diagnosis)
    assert record.events[0].kind == "heads"
    assert len(record.curves[RATE_CURVE].steps)
    assert record.checkup == monitor.checkup.results
    assert record.environment["torch"]
    assert read_run(training.directory).name == record.name


def test_metrics_are_at_the_steps_at_which_they_were_measured(training):
    """Not at the flushes of the monitor, which come once in five observations."""
    monitor = training.callbacks.AttentionMonitor(every_n_steps=2)
    training.train(monitor, validate_every=3)
    record = read_run(monitor.report_path.with_suffix(".npz"))
    (name,) = [name for name in record.curves if name in ("validation_loss", "eval_loss")]
    curve = record.curves[name]
    assert curve.steps[:6].tolist() == [3, 6, 9, 12, 15, 18]  # transformers measures once more at the end
    assert len(set(curve.values.tolist())) == len(curve.steps) <= 7


@pytest.mark.slow
def test_finding_is_on_the_page_before_the_training_ends(training):
    seen = []

    def look(finding, trainer, model):
        seen.append((finding.kind.value, _words(monitor.report_path)))

    monitor = training.callbacks.AttentionMonitor(on_finding=look)
    training.train(monitor, model=_with_frozen_queries())
    kind, words = seen[0]
    assert kind == "frozen_parameters"
    assert "This run is not converging (frozen_parameters)." in words
    assert "frozen parameters" in words


def test_page_is_written_anew_for_findings_only_while_little_time_has_gone_by(training):
    path, written = training.directory / "page.html", set()

    def look(model, step):
        if path.exists():
            written.add(path.stat().st_mtime_ns)

    options = {"every_n_steps": 1, "flush_every": 1, "on_finding": lambda finding, trainer, model: None}
    monitor = training.callbacks.AttentionMonitor(report=path, **options)
    training.train(monitor, model=_with_frozen_queries(), before_batch=look)
    assert len(written) == 1


def test_page_goes_where_the_user_wants_it_or_nowhere(training):
    path = training.directory / "mine" / "page.html"
    training.train(training.callbacks.AttentionMonitor(report=path), steps=3)
    assert "can't be judged yet" in _words(path)
    monitor = training.callbacks.AttentionMonitor(report=False)
    training.train(monitor, steps=3)
    assert monitor.report_path is None


def test_page_that_cannot_be_written_is_one_warning(training):
    blocked = training.directory / "file"
    blocked.write_text("not a folder")
    monitor = training.callbacks.AttentionMonitor(every_n_steps=1, flush_every=2, report=blocked / "page.html")
    with pytest.warns(AttnwatchWarning, match=r"`report`.*page\.html.*training continues") as warned:
        run = training.train(monitor, model=_frozen())
    assert run.num_steps == 20
    assert len([each for each in warned if "`report`" in str(each.message)]) == 1


def _with_frozen_queries():
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" not in name)
    return model


def test_page_stays_where_it_was_wanted_when_the_training_changes_its_folder(training, monkeypatch):
    other = training.directory / "other"
    other.mkdir()
    monkeypatch.chdir(training.directory)
    monitor = training.callbacks.AttentionMonitor(report="mine/page.html")
    training.train(monitor, steps=3, before_batch=lambda model, step: os.chdir(other))
    assert monitor.report_path == training.directory / "mine/page.html"
    assert monitor.report_path.exists()
    assert not [*other.iterdir()]


@pytest.mark.parametrize("name", ["page.html", "page.npz"])
def test_other_files_are_not_replaced(training, name):
    """Neither by the page nor by the record beside it."""
    mine = training.directory / name
    mine.write_bytes(b"precious")
    monitor = training.callbacks.AttentionMonitor(report=training.directory / "page.html")
    with pytest.warns(AttnwatchWarning, match=rf"`report`.*training continues.*{name}' is not a .* another path"):
        training.train(monitor, steps=3)
    assert mine.read_bytes() == b"precious"


def test_own_files_of_an_earlier_run_are_replaced(training):
    for steps in (2, 3):
        monitor = training.callbacks.AttentionMonitor(every_n_steps=1)
        training.train(monitor, steps=steps)
        assert len(read_run(monitor.report_path.with_suffix(".npz")).history) == steps


@pytest.mark.parametrize("training", ["transformers"], indirect=True)
def test_training_of_no_steps_has_a_page_without_a_length(training):
    """Its Trainer makes one step all the same."""
    monitor = training.callbacks.AttentionMonitor(every_n_steps=1)
    training.train(monitor, steps=0)
    assert "1 step; 1 observation" in _words(monitor.report_path)
    assert read_run(monitor.report_path.with_suffix(".npz")).history.total_steps is None


def test_page_and_record_have_different_paths(training):
    with pytest.raises(ConfigurationError, match=r"`report`.*'run\.npz'.*ends in \.html"):
        training.callbacks.AttentionMonitor(report="run.npz")


def _frozen():
    model = llama()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


@pytest.mark.slow
def test_resumed_run_has_the_curves_and_the_interruption(training):
    def monitor():
        return training.callbacks.AttentionMonitor(every_n_steps=1, flush_every=2)

    training.train(monitor(), steps=20, save_every=10)
    resumed = monitor()
    training.train(resumed, steps=20, checkpoint=10)
    record = read_run(resumed.report_path.with_suffix(".npz"))
    assert record.curves[RATE_CURVE].steps[0] < 10
    assert all((np.diff(curve.steps) > 0).all() for curve in record.curves.values())
    assert [(event.step, event.kind) for event in record.events] == [(10, "resume")]


def test_other_values_are_refused():
    from attnwatch.lightning import AttentionMonitor

    for wrong in (3, "", None):
        with pytest.raises(ConfigurationError, match="`report` must be True, False or the path"):
            AttentionMonitor(report=wrong)
