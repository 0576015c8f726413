"""The page about a run, written by a monitor in real trainings by each trainer."""

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

    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" not in name)
    monitor = training.callbacks.AttentionMonitor(on_finding=look)
    training.train(monitor, model=model)
    kind, words = seen[0]
    assert kind == "frozen_parameters"
    assert "This run is not converging (frozen_parameters)." in words
    assert "frozen parameters" in words


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
    with pytest.warns(AttnwatchWarning, match=r"`report`.*page\.html.*training goes on") as warned:
        run = training.train(monitor, model=_frozen())
    assert run.num_steps == 20
    assert len([each for each in warned if "`report`" in str(each.message)]) == 1


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
    assert [(event.step, event.kind) for event in record.events] == [(10, "resume")]


def test_other_values_are_refused():
    from attnwatch.lightning import AttentionMonitor

    for wrong in (3, "", None):
        with pytest.raises(ConfigurationError, match="`report` must be True, False or the path"):
            AttentionMonitor(report=wrong)
