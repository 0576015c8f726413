"""What the benchmark of the verdicts makes of runs, diagnoses and outcomes."""

import itertools
import re

import numpy as np
import pytest

from attnwatch import Diagnosis, Finding, FindingKind, RunStatus
from benchmarks.verdicts import report
from benchmarks.verdicts.attention import Rules, Signals
from benchmarks.verdicts.baselines import combined
from benchmarks.verdicts.runs import Recipe, Run
from benchmarks.verdicts.scores import LOOKS, Predictions, capability
from tests.support.histories import noisy

TASKS, ARCHITECTURES = ("copy", "recall", "text"), ("gpt2", "llama")
HEALTHY = Diagnosis(RunStatus.HEALTHY, (), 10, 0.2)


def finding(kind: FindingKind, severity: float = 0.9) -> Finding:
    return Finding(kind, (), 5, severity, "", {})


def alarm(kind: FindingKind = FindingKind.UNPROMISING, risk: float = 0.9) -> Diagnosis:
    return Diagnosis(RunStatus.NOT_CONVERGING, (finding(kind),), 10, risk)


def run(task: str, seed: int, fault: str = "", architecture: str = "llama") -> Run:
    """A failing one stands still."""
    entropy = {"start": 0.999, "end": 0.999, "noise": 1e-5} if fault else {"start": 0.95, "end": 0.4}
    history = noisy(**entropy, seed=seed, loss=(3, 3) if fault else (4, 1), max_logit=0.1 if fault else 10.0 + seed)
    recipe = Recipe(task, architecture, fault=fault, seed=seed)
    return Run(recipe, history, history.loss, history.loss, 1000, 0.1 if fault else 1.0, 0.1)


FAULTS = ("", "", "", "", "rate too low", "no warm-up")
RUNS = [
    run(task, seed, fault, architecture)
    for task, architecture in itertools.product(TASKS, ARCHITECTURES)
    for seed, fault in enumerate(FAULTS)
]
OUTCOMES = {each.name: bool(each.recipe.fault) for each in RUNS}
PARTS = {each.name: [each.until(share) for share in LOOKS] for each in RUNS}


@pytest.mark.slow
def test_diagnose_is_asked_with_a_model_of_other_tasks_and_architectures(monkeypatch):
    seen, tune = [], Signals.tune

    def noted(self, names, failed):
        seen.append({tuple(re.split("[/-]", name)[:2]) for name in names})
        return tune(self, names, failed)

    monkeypatch.setattr(Signals, "tune", noted)
    diagnosed = report.held_out_diagnoses(PARTS, OUTCOMES, Signals(PARTS, LOOKS))
    pairs = list(itertools.product(TASKS, ARCHITECTURES))
    assert seen == [{(one, other) for one, other in pairs if one != task and other != kind} for task, kind in pairs]
    assert diagnosed.keys() == OUTCOMES.keys()
    risks = {name: each[LOOKS.index(0.5)].risk for name, each in diagnosed.items()}
    worst, best = (
        pick(risks[name] for name, has_failed in OUTCOMES.items() if has_failed is of)
        for pick, of in ((max, False), (min, True))
    )
    assert worst < best
    assert all(diagnosed[name][-1].status.is_alarm for name, has_failed in OUTCOMES.items() if has_failed)


def test_flags_and_numbers_are_those_of_the_diagnoses():
    late = [HEALTHY] * 6 + [alarm(risk=0.95)] * 14
    predictions = report.as_diagnosed({"copy/a": late, "copy/b": [HEALTHY] * 20})
    assert predictions.flags["copy/a"].tolist() == [False] * 6 + [True] * 14
    assert predictions.numbers["copy/a"].tolist() == [0.2] * 6 + [0.95] * 14
    assert predictions.alarms == {"copy/a": LOOKS[6], "copy/b": 1.0}


@pytest.mark.slow
def test_rules_raise_the_risk_and_never_lower_it():
    rules = Rules(PARTS)
    failing = next(name for name, has_failed in OUTCOMES.items() if has_failed)
    assert (rules.risks(failing, np.zeros(20))[-5:] > 0.5).all()
    assert rules.risks(failing, np.ones(20)).tolist() == [1.0] * 20


def test_what_was_told_is_compared_with_what_happened():
    outcomes = {"copy/a": True, "copy/b": False, "copy/c": False}
    told = {"copy/a": 0.9, "copy/b": 0.9, "copy/c": 0.1}
    predictions = Predictions(numbers={name: np.full(20, risk) for name, risk in told.items()})
    low, high = report._reliability(predictions, outcomes)
    assert low == {"told": pytest.approx(0.1), "happened": 0.0, "runs": 3}  # at three looks
    assert high == {"told": pytest.approx(0.9), "happened": 0.5, "runs": 6}


def test_price_of_a_lead_is_counted_among_those_that_did_not_fail():
    outcomes = {"copy/a": True, "copy/b": False, "copy/c": False}
    assert report._ever_flagged(Predictions(alarms={"copy/a": 0.1, "copy/b": 0.2, "copy/c": 1.0}), outcomes) == 0.5
    assert report._quartiles(np.arange(5.0)) == {"low": 1.0, "median": 2.0, "high": 3.0, "mean": 2.0}


def test_kinds_are_counted_by_fault_and_by_how_often_they_were_right():
    runs = [
        run("copy", 0),
        run("copy", 1, "rate too low"),
        run("copy", 2, "rate too low"),
        run("copy", 3, "no warm-up"),
    ]
    outcomes = {each.name: bool(each.recipe.fault) for each in runs}
    uniform = alarm(FindingKind.UNIFORM_ATTENTION)
    says = [alarm(), uniform, HEALTHY, alarm()]
    diagnosed = {each.name: [said] * 20 for each, said in zip(runs, says, strict=True)}
    counted = report._kinds(runs, diagnosed, outcomes)
    assert counted["confusion"] == {
        "rate too low": {"uniform_attention": 1, "nothing": 1},
        "no warm-up": {"unpromising": 1},
    }
    assert counted["kinds"] == {
        "uniform_attention": {"runs": 1, "failed": 1.0},
        "unpromising": {"runs": 2, "failed": 0.5},
    }


def test_capability_is_high_where_low_risk_means_a_good_end():
    reached = {f"{task}/{number}": float(number) for task in TASKS for number in range(5)}
    predictions = Predictions(numbers={name: np.full(20, -end) for name, end in reached.items()})
    assert capability(predictions, reached, 0.25) == pytest.approx(1.0)


def test_rules_on_the_loss_together_use_what_each_knows():
    rng = np.random.default_rng(0)
    failed = {f"copy/{number}": bool(number % 2) for number in range(40)}
    informative = {name: rng.normal(size=20) + 3 * truth for name, truth in failed.items()}
    noise = {name: rng.normal(size=20) for name in failed}
    numbers = combined([noise, informative], failed)(list(failed))
    risks = np.array([numbers(name)[5] for name in failed])
    truth = np.array(list(failed.values()))
    assert risks[truth].mean() > 0.75 > 0.25 > risks[~truth].mean()
