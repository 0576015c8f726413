"""What the run page says, and how it is written."""

import base64
import dataclasses
import gzip
import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attnwatch import AttentionHistory, ConfigurationError, FindingKind, RunStatus, diagnose
from attnwatch.checkup import Check
from attnwatch.diagnosis import Cause, Diagnosis, Finding, FindingRule
from attnwatch.report.run import run_page, write_run_page
from attnwatch.report.run.comparison import first_differences
from attnwatch.report.run.grids import NO_HEAD, OBSERVED, REMOVED, UNOBSERVED, grids_of, head_states
from attnwatch.report.run.packing import pack
from attnwatch.report.run.signals import risk_course
from attnwatch.report.run.tables import event_tables, layer_table, other_events
from attnwatch.report.run.timeline import marks_of, timeline
from attnwatch.report.run.verdict import verdict_of
from attnwatch.runs import RATE_CURVE, RISK_CURVE, Curve, RunEvent, RunRecord
from tests.support.histories import noisy
from tests.support.pages import visible_words
from tests.support.records import a_history, a_record


def test_page_says_everything_in_words_too():
    words = visible_words(run_page([a_record()]))
    for text in (
        "This run is not converging (eval_mode).",
        "The model was in eval mode.",
        "The checkup observed this fault itself at step 0",
        "layers.1.attn",
        "1 of 6 heads was removed.",
        "1 check found nothing: batch_mixing",
        "every_n_steps 10",
        "torch 2.13",
        "HeadPruning: 1 of 6 heads is gone.",
        "Read it so.",
    ):
        assert text in words, text


@pytest.mark.parametrize("status", RunStatus)
def test_each_status_has_a_sentence_an_action_and_a_certainty(status):
    judged = Diagnosis(status, (), step=70, risk=0.8, reasons=("the loss does not fall",))
    verdict = verdict_of(dataclasses.replace(a_record(), judged=judged, checked=()))
    assert verdict.sentence
    assert all(verdict.actions)
    assert verdict.actions
    assert "0.80" in verdict.certainty
    assert (verdict.tone == "bad") == status.is_alarm


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(width=32)))
@example(np.array([[np.finfo(np.float32).max, -np.nan, np.nan]], dtype=np.float32))
@example(np.array([[0x7FFFFFFF]], dtype=np.uint32).view(np.float32))
def test_packed_numbers_keep_four_digits(values):
    packed = pack({"first": values, "second": values + 1})
    planes = np.frombuffer(gzip.decompress(base64.b64decode(packed.content)), dtype=np.uint8).reshape(4, -1)
    numbers = np.ascontiguousarray(planes.T).view("<f4").ravel()
    place = packed.places["first"]
    again = numbers[place["start"] :][: values.size].reshape(place["shape"])
    normal = np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values)
    np.testing.assert_allclose(np.where(normal == 0, 0, again), normal, rtol=1e-4)
    assert packed.size == 2 * values.size


@given(arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))))
def test_states_of_heads_equal_a_slow_loop(seen):
    history = a_history(*seen.shape)
    values = {name: np.where(seen, np.float32(0.5), np.float32(np.nan)) for name in history.values}
    states = head_states(dataclasses.replace(history, values=values))
    for step, site, head in np.ndindex(*seen.shape):
        if not seen[:, site, head].any():
            expected = NO_HEAD
        elif seen[step, site, head]:
            expected = OBSERVED
        elif seen[:step, site, head].any() and seen[step, site].any():
            expected = REMOVED
        else:
            expected = UNOBSERVED
        assert states[step, site, head] == expected


def test_page_of_a_large_model_holds_fewer_steps_of_its_heads():
    history = a_history(128, 24, 64)
    grids = grids_of(history)
    assert 2 <= len(grids.shown) < 128
    assert grids.shown[0] == 0
    assert grids.shown[-1] == 127
    assert grids.layers["entropy"].shape == (128, 24)
    np.testing.assert_array_equal(grids.arrays["heads/entropy"][-1], history["entropy"][-1])


def _verdict_with(cause: Cause):
    unpromising = Finding(FindingKind.UNPROMISING, (), 60, 0.9, "9 in 10 runs like this one failed", causes=(cause,))
    collapse = Finding(
        FindingKind.ENTROPY_COLLAPSE,
        ("layers.0.attn",),
        70,
        0.7,
        "it collapsed. Lower the rate.",
        advice="Lower the rate.",
    )
    judged = Diagnosis(RunStatus.NOT_CONVERGING, (unpromising, collapse), step=70)
    return verdict_of(dataclasses.replace(a_record(), judged=judged, checked=()))


def test_causes_are_told_instead_of_the_general_advice():
    clear = _verdict_with(Cause("rate_too_low", 0.7, title="the rate is too low", remedy="Raise the learning rate."))
    assert clear.sentence == "This run is not converging, probably because the rate is too low."
    assert clear.causes == (("The rate is too low", "70% of the evidence", "Raise the learning rate."),)
    assert clear.actions == ("Lower the rate.",)
    unclear = _verdict_with(Cause("rate_too_low", 0.2, title="the rate is too low", remedy="Raise the learning rate."))
    assert unclear.sentence == "This run is not converging."


def test_cause_that_the_checkup_found_is_no_possibility():
    found = _verdict_with(Cause("frozen_parameters", 1.0, ("the checkup found it",), is_fact=True))
    assert found.causes == (("Frozen parameters", "found by the checkup", ""),)
    assert found.causes_title == "Cause"
    guessed = _verdict_with(Cause("rate_too_low", 0.7, title="the rate is too low"))
    assert guessed.causes_title == "Possible causes, and what to do"


def test_causes_are_not_repeated():
    cause = Cause("rate_too_low", 0.7, ("it falls slowly",), title="the rate is too low")
    findings = [
        Finding(kind, (), 60, 0.9, "it is so", causes=(cause,))
        for kind in (FindingKind.UNPROMISING, FindingKind.UNIFORM_ATTENTION)
    ]
    judged = Diagnosis(RunStatus.NOT_CONVERGING, tuple(findings), step=70)
    words = visible_words(run_page([dataclasses.replace(a_record(), judged=judged, checked=())]))
    assert words.count("For: it falls slowly") == 1
    assert words.count("likely causes (share of the evidence): as above") == 1


def test_marks_are_findings_and_events_in_the_order_of_their_steps():
    record = a_record()
    later = dataclasses.replace(record.checked[0], kind=FindingKind.UNIFORM_ATTENTION, step=60)
    judged = Diagnosis(RunStatus.NOT_CONVERGING, (later, *record.checked), step=70)
    marks = marks_of(dataclasses.replace(record, judged=judged))
    assert [(mark.step, mark.lane, mark.label, mark.anchor) for mark in marks] == [
        (0, "checkup", "eval mode", "finding-1"),
        (40, "heads", "heads removed", "event-0"),
        (60, "findings", "uniform attention", "finding-0"),
    ]


def test_infinite_numbers_leave_no_gap_in_what_the_scripts_read():
    """JSON has no infinity: the browser would draw nothing at all."""
    history = a_history()
    for values in (*history.values.values(), *history.layers.values()):
        values[3, 1] = np.inf
        values[4, 1] = -np.inf
    history.loss[5] = np.inf
    page = run_page(
        [dataclasses.replace(a_record(history=history), curves={"eval_loss": Curve(np.arange(2), [1, np.inf])})]
    )
    packed = re.search('id="packed-data">([^<]*)<', page)[1]
    data = json.loads(gzip.decompress(base64.b64decode(packed)), parse_constant=pytest.fail)
    described = {each["name"]: (each["low"], each["high"]) for each in data["runs"][0]["statistics"]}
    assert described["gradient_norm"][1] == np.max(history["gradient_norm"][np.isfinite(history["gradient_norm"])])


@pytest.mark.parametrize(("values", "expected"), [([1e-3, 1e-3], (0.0, 2e-3)), ([0.0, 0.0], (-1.0, 1.0))])
def test_constant_curve_is_in_the_middle_of_its_chart(values, expected):
    record = dataclasses.replace(a_record(), curves={RATE_CURVE: Curve(np.arange(2), np.array(values))})
    figures = timeline([record], [risk_course(record)]).children
    (rate,) = [each for each in figures if each.yaxis.axis_label == "learning rate"]
    assert (rate.y_range.start, rate.y_range.end) == expected


def test_odd_layers_come_first():
    history = a_history(8, 9)
    history["max_logit"][:, 6] = 40.0
    table = layer_table(dataclasses.replace(a_record(history=history), checked=()), grids_of(history).layers)
    assert table.rows[0][1] == "layers.6.attn"
    assert "max logit far above" in table.rows[0][3]


def test_events_with_numbers_are_a_table_with_the_loss_on_both_sides():
    record = a_record()
    words = RunEvent(10, "resume", "resumed", "The training was resumed after step 10.")
    later = RunEvent(70, "heads", "cut, taken back", details={"heads": 2.0, "at most": 1.25})
    record = dataclasses.replace(record, events=(words, *record.events, later))
    (table,) = event_tables(record)
    assert (table.kind, table.columns) == ("heads", ["heads", "criterion", "at most", "loss before", "loss after"])
    loss = record.history.loss
    before, after = loss[:4].mean(), loss[4:].mean()
    assert table.rows[0] == (1, record.events[1], ["1", "gate", "–", f"{before:#.3g}", f"{after:#.3g}"])
    before = loss[2:7].mean()
    assert table.rows[1] == (2, later, ["2", "–", "1.25", f"{before:#.3g}", "1"])
    assert other_events(record) == [(0, words)]
    page = run_page([record])
    assert [page.count(f'id="event-{index}"') for index in range(4)] == [1, 1, 1, 0]


def test_runs_of_the_same_name_are_told_apart():
    """Those of Lightning are all called "version_0"."""
    words = visible_words(run_page([a_record(name) for name in ("version_0", "other", "version_0")]))
    assert words.startswith("1: version_0 / 2: other / 3: version_0: attnwatch")
    assert "1: version_0 and 3: version_0 do not differ" in words


def test_length_that_the_run_has_passed_is_told_and_not_believed():
    record = a_record(history=dataclasses.replace(a_history(), total_steps=5))
    words = visible_words(run_page([dataclasses.replace(record, checked=())]))
    assert "71 steps; 8 observations" in words
    assert "a run of 5 steps" not in words
    assert "The length of the run is unknown: it has more steps than planned." in words


def test_attention_that_was_not_observed_is_not_counted():
    history = a_history(40)
    nothing = {name: np.full_like(array, np.nan) for name, array in history.values.items()}
    record = dataclasses.replace(a_record(history=dataclasses.replace(history, values=nothing)), checked=())
    words = visible_words(run_page([record]))
    assert "can't be judged" in words
    assert "Attention was observed at 0 of 40 observations; find out why" in words
    assert "Let it train on" not in words


def _bent(history: AttentionHistory, name: str, site: int, begin: int) -> AttentionHistory:
    values = {each: array.copy() for each, array in history.values.items()}
    values[name][begin:, site] += 5.0
    return dataclasses.replace(history, values=values)


@pytest.mark.parametrize("begin", [12, 20])
def test_first_difference_is_named_with_its_layer_and_step(begin):
    history = a_history(40, 3)
    other = _bent(history, "max_logit", 1, begin)
    (said,) = first_differences([a_record("one", history), a_record("two", other)])
    assert said == f"one and two first differ in the max logit of layer 1 at step {10 * begin}."


def test_runs_that_differ_by_noise_alone_do_not_part():
    records = [a_record(f"run {seed}", a_history(40, 3, seed=seed)) for seed in (0, 1)]
    assert "do not differ" in first_differences(records)[0]


@pytest.mark.slow
def test_ten_thousand_findings_make_no_endless_page():
    record = a_record()
    many = tuple(dataclasses.replace(record.checked[0], message=f"fault {index}") for index in range(10_000))
    judged = dataclasses.replace(record.diagnosis, findings=many)
    page = run_page([dataclasses.replace(record, judged=judged, checked=many[:1])])
    assert "9,700 more findings" in visible_words(page)
    assert len(page) < 2e6


def test_page_replaces_another_only_when_it_is_complete(tmp_path):
    path = tmp_path / "page.html"
    write_run_page([a_record("old")], path)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_run_page([dataclasses.replace(a_record("new"), events=(None,))], path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_page_is_another_file_than_the_one_that_it_replaces(tmp_path):
    """Whoever reads the old one, or has a link to it, goes on with the old one."""
    path, link = tmp_path / "page.html", tmp_path / "link.html"
    write_run_page([a_record("old")], path)
    link.hardlink_to(path)
    write_run_page([a_record("new")], path)
    assert "new" in path.read_text()
    assert "<title>old" in link.read_text()


@pytest.mark.parametrize("total_steps", [1200, None])
def test_risk_is_that_of_the_diagnosis_at_each_step(total_steps):
    history = dataclasses.replace(noisy(observations=60, loss=(2, 2.1)), total_steps=total_steps)
    course = risk_course(RunRecord("run", history))
    parts = [history.first(int(np.searchsorted(history.steps, step)) + 1) for step in course.steps]
    risks = [diagnose(part).risk if len(part) > 1 else np.nan for part in parts]
    known = np.isfinite(course.risk.values)
    assert known.sum() > 5
    np.testing.assert_allclose(course.risk.values[known], np.array(risks)[known])


def test_logged_risk_is_shown_as_it_was_logged():
    logged = Curve(np.array([10, 20]), np.array([0.3, 0.4]))
    course = risk_course(dataclasses.replace(a_record(), curves={RISK_CURVE: logged}))
    assert course.risk == logged


def test_only_pages_are_replaced(tmp_path):
    """`attnwatch report --out a.npz b.npz` forgets the page, and must not destroy a run."""
    runs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in runs:
        a_record().save(path)
    before = [path.read_bytes() for path in runs]
    for out in runs:
        with pytest.raises(ConfigurationError, match=r"`path`: '.*\.npz' is not a page"):
            write_run_page([a_record()], out)
    assert [path.read_bytes() for path in runs] == before
    (tmp_path / "empty.html").touch()
    write_run_page([a_record()], tmp_path / "empty.html")


def test_bad_arguments_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigurationError, match="`records` must contain at least one run"):
        run_page([])
    with pytest.raises(ConfigurationError, match=r"`path`.*is a folder"):
        write_run_page([a_record()], tmp_path)
    with pytest.raises(ConfigurationError, match=r"`path`.*does not exist"):
        write_run_page([a_record()], tmp_path / "missing" / "page.html")


def test_advice_is_that_of_the_check_where_a_rule_has_the_same_name():
    check, rule = Check.registry["blind_attention"], FindingRule.registry["blind_attention"]
    message = f"no token sees another. {check.remedy}"
    found = Finding(FindingKind.BLIND_ATTENTION, ("layers.0",), 0, 0.8, message, advice=check.remedy)
    record = dataclasses.replace(a_record(), checked=(found,))
    assert verdict_of(record).fault == "No token sees another."
    assert verdict_of(record).actions == (check.remedy,)
    words = visible_words(run_page([record]))
    assert " ".join(check.remedy.split()) in words
    assert rule.remedy not in words
