"""Status, risk, findings, places and words of a verdict never contradict each other, at any look."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnwatch
from attnwatch import AttentionHistory, Diagnosis, Finding, FindingKind, RunStatus, Thresholds, diagnose
from attnwatch.dashboard.markdown import diagnosis_markdown
from attnwatch.diagnosis import FindingActions
from attnwatch.diagnosis.findings.uniform_attention import UniformAttention
from attnwatch.diagnosis.risk import default_risk_model
from attnwatch.recorder.buffer import HistoryBuffer
from attnwatch.recorder.lazy import Observation
from attnwatch.statistics import Statistic
from benchmarks.verdicts.runs import STORED
from tests.support.histories import HEADS, SITES, course

FLAG_AT = default_risk_model().flag_at
ALARMING = re.compile(
    r"fail|wrong|alarm|warn|danger|unstable|diverg|explod|collaps|lost|error|bad|broken|not learn|lower the", re.I
)


def check(diagnosis: Diagnosis) -> None:
    reasons = [finding for finding in diagnosis.findings if not finding.is_note]
    notes = [finding for finding in diagnosis.findings if finding.is_note]
    status, risk = diagnosis.status, diagnosis.risk
    assert status.is_alarm == bool(reasons)
    assert (status is RunStatus.UNDETERMINED) == math.isnan(risk)
    assert (status is RunStatus.HEALTHY) == (not reasons and risk < min(0.7, FLAG_AT))
    assert (status is RunStatus.AT_RISK) == (not reasons and risk >= min(0.7, FLAG_AT))
    assert all(FLAG_AT <= risk <= 1 and 0 < finding.severity <= risk for finding in reasons)
    assert list(diagnosis.findings) == reasons + notes
    for note in notes:
        assert type(note.is_note) is bool
        assert note.severity == 0
        assert not ALARMING.search(note.message), note.message
    for finding in diagnosis.findings:
        assert 0 <= finding.step <= diagnosis.step
        assert finding.sites or finding.kind is FindingKind.UNPROMISING
        assert not finding.sites or f"at {len(finding.sites)} of " in finding.message
        assert finding.step >= 0
    assert ("risk not known yet" in str(diagnosis)) == math.isnan(risk)
    assert str(diagnosis).count("\n- note, ") == len(notes)
    markdown = diagnosis_markdown(diagnosis)
    assert markdown.count("- *Note (") == len(notes)
    assert markdown.count(", severity ") == len(reasons)
    assert "nan" not in markdown.split("\n")[0]


def check_looks(history: AttentionHistory, total_steps: int | None, **options) -> None:
    """At every observation: consistent; and what goes on holding has begun when it was said to have begun."""
    looks = [diagnose(history.first(number), total_steps=total_steps, **options) for number in range(len(history) + 1)]
    for before, after in itertools.pairwise(looks):
        check(after)
        begun = {finding.kind: finding.step for finding in before.findings}
        for finding in after.findings:
            assert finding.step <= begun.get(finding.kind, finding.step), finding.kind


@pytest.mark.parametrize(
    "name",
    [
        "bytes/gpt2-plain-rate_far_too_high-101",
        "copy/gpt2-plain-float16-128",
        pytest.param("copy/opt-plain-scale_too_small-114", marks=pytest.mark.slow),
        "images/vit-plain-queries_and_keys_left_out-112",
        "images/vit-plain-rate_that_rises-111",
        "images/vit-slow-sound-8",
        "recall/llama-plain-rate_that_rises-111",
        "text/short_minilm-plain-weights_decayed-113",
    ],
)
@pytest.mark.parametrize("knows_budget", [True, False], ids=["budget", "no budget"])
def test_stored_runs_are_judged_consistently_at_every_look(name, knows_budget):
    run = STORED[name]
    check_looks(run.history, run.budget if knows_budget else None)


LEVELS = {
    "normalized_entropy": [0.002, 0.015, 0.5, 0.94, 0.96, 0.98, 0.9999],
    "max_logit": [0.1, 5.0, 300.0, 700.0, 5e3],
    "logit_std": [0.01, 0.1, 1.0, 10.0],
    "nonfinite": [0.0, 0.0, 0.0, 0.0, 0.3],
    "sink_mass": [0.05, 0.9],
    "entropy_without_sink": [0.001, 2.0],
}


@st.composite
def histories(draw) -> AttentionHistory:
    """Sites that jump between levels, with noise, and pieces that were not observed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    observations = draw(st.integers(1, 60))
    history = course(observations=observations, every=draw(st.sampled_from([1, 7, 20])))
    for name, levels in LEVELS.items():
        for site in range(SITES):
            ends = np.sort(rng.integers(0, observations + 1, rng.integers(0, 3)))
            levels_now = rng.choice(levels, len(ends) + 1)
            path = levels_now[np.searchsorted(ends, np.arange(observations), side="right")]
            noise = 1 + draw(st.sampled_from([0.0, 1e-4, 0.01])) * rng.normal(size=(observations, HEADS))
            history.values[name][:, site] = path[:, None] * noise
    np.clip(history.values["nonfinite"], 0, 1, out=history.values["nonfinite"])
    for _ in range(rng.integers(0, 3)):
        steps, sites = slice(*np.sort(rng.integers(0, observations + 1, 2))), rng.integers(SITES)
        for values in history.values.values():
            values[steps, sites] = np.nan
    history.loss[:] = np.geomspace(4, rng.choice([1.0, 4.0, 8.0]), observations) + 0.02 * rng.normal(size=observations)
    return history


@given(histories(), st.sampled_from([None, 100, 500, 20_000]), st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_any_run_is_judged_consistently_at_every_look(history, total_steps, patience):
    thresholds, rules = Thresholds(min_steps=20, patience=patience), [UniformAttention(steps=20)]
    check_looks(history, total_steps, thresholds=thresholds, rules=rules)


# Places


def frozen(noises, *, observations=100, every=10) -> AttentionHistory:
    """Layers that do not change, each seen with noise of its own, while the loss falls."""
    rng = np.random.default_rng(0)
    sites = len(noises)
    shape = (observations, sites, HEADS)
    values = {name: np.broadcast_to(course()[name][:1, :1, :1], shape).copy() for name in Statistic.registry}
    values["normalized_entropy"] += np.asarray(noises)[:, None] * rng.normal(size=shape)
    loss = np.geomspace(4, 1, observations)
    return AttentionHistory(np.arange(observations) * every, tuple(f"layers.{i}" for i in range(sites)), values, loss)


def note_of(diagnosis: Diagnosis, kind: FindingKind) -> Finding:
    (found,) = [finding for finding in diagnosis.findings if finding.kind is kind]
    return found


def test_layers_that_are_all_frozen_are_all_named():
    history = frozen([3e-4, 3e-4, *np.geomspace(5e-4, 4e-3, 22)])
    note = note_of(diagnose(history, total_steps=1000), FindingKind.FROZEN_ATTENTION)
    assert len(note.sites) == 24
    assert "at 24 of 24 sites" in note.message


def test_frozen_layers_that_are_near_uniform_or_have_large_logits_are_named_with_the_others():
    history = frozen([3e-4] * 6)
    history["normalized_entropy"][:, 1:3] += 0.48
    history["max_logit"][:, 3] = 900
    history["normalized_entropy"][:, 5] += np.linspace(0, 0.3, 100)[:, None]
    note = note_of(diagnose(history, total_steps=1000), FindingKind.FROZEN_ATTENTION)
    assert note.sites == tuple(f"layers.{site}" for site in range(5))


def test_frozen_attention_began_when_it_began_however_long_ago():
    looks = [diagnose(frozen([3e-4] * 3, observations=number)) for number in (40, 100, 250)]
    begun = [note_of(look, FindingKind.FROZEN_ATTENTION).step for look in looks]
    assert begun[0] == begun[1] == begun[2]


def test_finding_is_as_old_as_the_first_site_that_had_it_while_others_go_on():
    logits = np.full((60, SITES), 5.0)
    logits[10:30, 0], logits[20:, 1] = 5e3, 5e3
    history = course(observations=60)
    history["max_logit"][:] = logits[..., None]
    (finding,) = diagnose(history).findings
    assert finding.sites == ("layers.1.attn",)
    assert finding.step == 100


def test_as_a_fault_grows_places_only_grow():
    history = course(observations=80)
    for site in range(SITES):
        history["max_logit"][10 + 15 * site :, site] = 5e3
    looks = [diagnose(history.first(number), total_steps=1000).findings for number in range(20, 81)]
    places = [set(findings[0].sites) for findings in looks]
    assert all(before <= after for before, after in itertools.pairwise(places))
    assert len(places[-1]) == SITES
    assert {findings[0].step for findings in looks} == {100}


# Between healthy and failing


def test_high_risk_that_has_not_lasted_is_at_risk_and_no_alarm():
    run = STORED["images/vit-slow-sound-8"]
    parts = [run.history.first(number) for number in range(10, 101)]
    looks = [diagnose(part, total_steps=run.budget) for part in parts]
    at_risk = [look for look in looks if look.status is RunStatus.AT_RISK]
    assert at_risk
    assert not any(look.status.is_alarm for look in at_risk)
    assert "at risk (risk 0." in str(at_risk[0])
    assert "watch it" in str(at_risk[0])
    assert diagnosis_markdown(at_risk[0]).startswith("## at risk: risk 0.")


def test_risk_is_nan_before_there_is_evidence_and_where_nothing_is_known():
    assert math.isnan(diagnose(course(observations=0)).risk)
    assert math.isnan(diagnose(course(observations=5)).risk)
    assert math.isnan(diagnose(course(observations=30), total_steps=100_000).risk)
    assert str(diagnose(course(observations=5))) == "undetermined (risk not known yet) at step 40"
    assert ": risk not known yet, step 40" in diagnosis_markdown(diagnose(course(observations=5)))


def test_notes_do_not_raise_the_risk():
    plain = course(observations=60)
    noted = course(observations=60, sites=[0], normalized_entropy=0.999)
    model = attnwatch.RiskModel.zero()
    assert diagnose(noted, risk_model=model).findings[0].is_note
    assert diagnose(noted, risk_model=model).risk == diagnose(plain, risk_model=model).risk


def test_evidence_of_a_run_is_in_units_that_people_know():
    run = STORED["copy/opt-plain-rate_too_high-101"]
    finding = note_of(diagnose(run.until(0.5).history, total_steps=run.budget), FindingKind.UNPROMISING)
    logits = run.until(0.5).history["max_logit"][-10:]
    assert finding.evidence["largest_logit"] == pytest.approx(np.nanmean(logits, 0).max(), rel=1e-5)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ("the loss is nan. Lower it.", "The loss is nan."),
        ("layers.0.attn got no gradient. Lower it.", "layers.0.attn got no gradient."),
        ("mse_loss received it. Lower it.", "mse_loss received it."),
        ("`mask` hides it. Lower it.", "`mask` hides it."),
    ],
)
def test_what_was_seen_begins_with_a_capital_or_with_a_name(message, what):
    assert Finding(FindingKind.NON_FINITE, (), 0, 1.0, message, advice="Lower it.").what == what


# Actions


def verdict(*findings: Finding) -> Diagnosis:
    return Diagnosis(RunStatus.HEALTHY, findings, 10, 0.2)


NOTE = Finding(FindingKind.UNIFORM_ATTENTION, ("a",), 0, 0.0, "", {}, is_note=True)
FINDING = Finding(FindingKind.UNIFORM_ATTENTION, ("a", "b"), 0, 0.8, "")


@pytest.mark.parametrize("action", ["warn", "stop", print])
def test_notes_are_ignored_and_new_when_they_become_findings(action):
    actions = FindingActions(action)
    assert actions.new_findings(verdict(NOTE)) == [(NOTE, "ignore")]
    assert actions.new_findings(verdict(NOTE)) == []
    assert actions.new_findings(verdict(FINDING)) == [(FINDING, action)]
    assert actions.new_findings(verdict(NOTE)) == [(NOTE, "ignore")]


def test_function_for_a_kind_hears_of_its_notes():
    actions = FindingActions({"uniform_attention": print, "frozen_attention": "stop"})
    assert actions.new_findings(verdict(NOTE)) == [(NOTE, print)]


def test_notes_that_were_told_survive_a_checkpoint():
    actions, resumed = FindingActions("warn"), FindingActions("warn")
    actions.new_findings(verdict(NOTE))
    resumed.load_state_dict(actions.state_dict())
    assert resumed.new_findings(verdict(NOTE)) == []
    assert resumed.new_findings(verdict(FINDING)) == [(FINDING, "warn")]


# Judged again and again


def buffered(history: AttentionHistory, most: int = 512):
    """A buffer, and the history at each of its flushes of five."""
    buffer = HistoryBuffer(history.sites, tuple(Statistic.registry), most)
    for index, step in enumerate(history.steps):
        values = np.stack([history.values[name][index] for name in Statistic.registry])
        layers = {name: column[index] for name, column in history.layers.items()}
        buffer.append(Observation(int(step), values, float(history.loss[index]), layers=layers))
        if index % 5 == 4:
            yield buffer, history.first(index + 1)


@pytest.mark.parametrize("name", ["images/vit-slow-sound-8", "recall/llama-plain-rate_that_rises-111"])
def test_what_is_remembered_changes_no_verdict(name):
    run = STORED[name]
    for buffer, whole in buffered(run.history):
        assert diagnose(buffer.history({}), total_steps=run.budget) == diagnose(whole, total_steps=run.budget)


def test_arrays_that_were_changed_are_read_anew():
    run = STORED["images/vit-slow-sound-8"]
    buffer = [buffer for buffer, _ in buffered(run.history)][-1]
    assert not diagnose(buffer.history({})).status.is_alarm
    changed = buffer.history({})
    changed["nonfinite"][-1] = 1.0
    assert diagnose(changed).status is RunStatus.UNSTABLE
    assert not diagnose(buffer.history({})).status.is_alarm


def test_loss_of_ones_own_is_not_mixed_with_what_is_remembered():
    run = STORED["bytes/gpt2-plain-rate_far_too_high-101"]
    buffer = [buffer for buffer, _ in buffered(run.history)][-1]
    loss = np.geomspace(4, 1, len(run.history))
    own = diagnose(run.history, loss=loss, total_steps=run.budget)
    diagnose(buffer.history({}), total_steps=run.budget)
    assert diagnose(buffer.history({}), loss=loss, total_steps=run.budget) == own


def test_history_until_a_step_and_of_the_first_observations():
    history = course(observations=10, every=10)
    assert history.until(30).steps.tolist() == history.until(39).steps.tolist() == [0, 10, 20, 30]
    assert history.first(2).steps.tolist() == [0, 10]
    assert len(history.until(-1)) == len(history.first(0)) == 0
    assert history.until(30)["entropy"].shape == (4, SITES, HEADS)
