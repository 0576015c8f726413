"""The checkup of the first steps of stored runs, and what the report makes of it."""

import dataclasses

import pytest

from attnwatch import Check, Diagnosis, Finding, FindingKind, RunStatus
from attnwatch.diagnosis.risk import RiskModel
from benchmarks.verdicts.attention import diagnoses
from benchmarks.verdicts.checked import CHECKED, CheckedRun, CheckedRuns, check, num_steps
from benchmarks.verdicts.faults import FAULTS
from benchmarks.verdicts.runs import STORED, Recipe, Run
from benchmarks.verdicts.scores import LOOKS
from benchmarks.verdicts.tasks import tasks
from benchmarks.verdicts.train import train
from benchmarks.verdicts.with_checkup import NAMES, measure_checkup, why_not_flagged
from tests.support.histories import noisy

STEPS = 40


def finding(kind: FindingKind = FindingKind.RATE_TOO_HIGH, step: int = 5, *, is_note: bool = False) -> Finding:
    return Finding(kind, ("a.b",), step, 0.0 if is_note else 0.8, "the rate is odd", {"rate": 3.0}, is_note)


def checked_run(*findings: Finding, skipped=None, losses=(2.0, 1.0)) -> CheckedRun:
    return CheckedRun(findings, frozenset({"future_leak"}), skipped or {}, losses, 1.5)


def run(fault: str = "", seed: int = 0) -> Run:
    history = noisy(start=0.95, end=0.4, noise=1e-5, seed=seed, loss=(4, 1))
    return Run(Recipe("copy", "opt", fault=fault, seed=seed), history, history.loss, history.loss, 1000, 0.5, 0.1)


@pytest.fixture(scope="module")
def task():
    return dataclasses.replace(tasks(None)["copy"], steps=STEPS)


@pytest.mark.slow
def test_first_steps_are_those_of_the_run_and_a_fault_is_found(task):
    recipe = Recipe("copy", "opt", fault="queries and keys left out", seed=7)
    checked, whole = check(recipe, task), train(recipe, task)
    assert checked.num_steps == num_steps(STEPS) == STEPS // 4
    assert list(checked.losses) == whole.losses[: STEPS // 4]
    assert checked.is_of(whole)
    assert not check(dataclasses.replace(recipe, seed=8), task).is_of(whole)
    assert [each.kind.value for each in checked.findings] == ["not_in_optimizer"]
    assert checked.until(0) == []


def test_steps_end_behind_the_later_look_or_at_a_quarter_of_the_budget():
    assert [num_steps(budget) for budget in (1000, 500, 150)] == [105, 55, 37]


def test_results_are_stored_and_read_again(tmp_path):
    path = tmp_path / "folder" / "checked.json"
    stored = checked_run(finding(), finding(FindingKind.LABELS_UNRELATED, is_note=True), skipped={"no_gradient": "why"})
    CheckedRuns(path).add("copy/a", stored)
    CheckedRuns(path).add("copy/b", checked_run())
    again = CheckedRuns(path)
    assert dict(again) == {"copy/a": stored, "copy/b": checked_run()}
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="has format 99; this version reads format 1"):
        CheckedRuns(path)


def test_findings_count_from_their_step_on():
    late = finding(FindingKind.LABELS_SHIFTED_TWICE, step=400)
    seen = [run().until(share) for share in LOOKS]
    diagnosed = diagnoses(seen, RiskModel.zero(), checked_run(late))
    flagged = {share: late in each.findings for share, each in zip(LOOKS, diagnosed, strict=True)}
    assert [share for share in LOOKS if flagged[share]] == [share for share in LOOKS if share > 0.4]
    assert not any(late in each.findings for each in diagnoses(seen, RiskModel.zero()))


REASONS = {
    "sound": (run(), checked_run(), "no fault was made: the recipe is sound"),
    "rising": (run("rate that rises"), checked_run(), "the rate has risen 13-fold so far, and rises 30,000-fold"),
    "skipped": (run("one batch"), checked_run(skipped={"repeated_batch": "6 steps"}), "`repeated_batch`: 6 steps"),
    "noted": (
        run("rate too high"),
        checked_run(finding(is_note=True)),
        "`rate_too_high` is a note",
    ),
    "warm-up": (
        run("rate far too high"),
        checked_run(),
        "`rate_too_high`: nothing found; in the 6 steps that it judges, the warm-up had reached 12% of the rate",
    ),
    "nothing": (run("scale too small"), checked_run(), "`wrong_attention_scale`: nothing found"),
}


@pytest.mark.parametrize(("seen", "checked", "reason"), REASONS.values(), ids=REASONS)
def test_failing_run_that_is_not_flagged_has_a_reason(seen, checked, reason):
    assert why_not_flagged(seen, checked, 0.25).startswith(reason)


def test_every_fault_has_the_name_of_a_check():
    assert NAMES.keys() == FAULTS.keys()
    assert set().union(*NAMES.values()) <= set(Check.registry)


def test_alarms_and_causes_are_counted():
    failing, missed, sound = run("rate too high", 1), run("one batch", 2), run("", 3)
    outcomes = {failing.name: True, missed.name: True, sound.name: False}
    checked = {
        failing.name: checked_run(finding()),
        missed.name: checked_run(finding(is_note=True)),
        sound.name: checked_run(finding(step=300)),
    }
    healthy = [Diagnosis(RunStatus.HEALTHY, (), 1)] * len(LOOKS)
    alarm = [Diagnosis(RunStatus.UNSTABLE, (finding(),), 1)] * len(LOOKS)
    late = healthy[: LOOKS.index(0.5)] + alarm[LOOKS.index(0.5) :]
    told = {failing.name: alarm, missed.name: healthy, sound.name: late}
    measured = measure_checkup([failing, missed, sound], checked, outcomes, dict.fromkeys(outcomes, healthy), told)
    assert measured["alone"] == {
        "0.25": {"recall": 0.5, "false_alarms": 0.0},
        "0.5": {"recall": 0.5, "false_alarms": 1.0},
    }
    assert measured["alarms_of_the_others"] == {sound.name: ["rate_too_high"]}
    assert measured["kinds"] == {"rate_too_high": {"runs": 2, "failed": 0.5}}
    assert measured["sound_recipes"] == 1
    assert measured["flagged_sound_recipes"] == {"0.25": [], "0.5": [sound.name]}
    assert list(measured["not_flagged"]["0.25"]) == [missed.name]
    assert measured["first_cause_is_right"] == {"without": {"runs": 0, "right": 0}, "with": {"runs": 1, "right": 1}}


def test_all_stored_runs_are_checked():
    assert set(CHECKED) == set(STORED)
