"""How the benchmark of the checkup counts."""

import pytest

from attnwatch import Finding, FindingKind
from benchmarks.checkup.architectures import ARCHITECTURES
from benchmarks.checkup.baselines import is_bad_loss
from benchmarks.checkup.beside import Beside, compared
from benchmarks.checkup.scores import PLAIN, Judged, totals
from benchmarks.checkup.scripts import Case, Outcome, Trained

SCRIPT = ARCHITECTURES["own causal"]


def finding(kind: str, *, is_note: bool = False, step: int = 0) -> Finding:
    return Finding(FindingKind(kind), (), step, 0.0 if is_note else 0.8, "", is_note=is_note)


def judged(*findings: Finding, kinds=(), losses=(2.0, 1.0), error="", loop=PLAIN, name="a", **case) -> Judged:
    made = Case(name, "own causal", SCRIPT, kinds, **case)
    return Judged(made, Outcome(list(findings), {}, Trained(list(losses), [], error)), loop)


def test_note_that_names_a_fault_is_counted_apart():
    by_note = judged(finding("rate_too_low", is_note=True), kinds=("rate_too_low",))
    by_alarm = judged(finding("eval_mode"), kinds=("eval_mode",), name="b")
    scores = totals([by_note, by_alarm])["faults"]["all"]
    assert scores["named"] == 0.5
    assert scores["named_or_noted"] == 1.0
    assert scores["noticed"] == 0.5


def test_parts_are_scored_by_themselves():
    scripts = [
        judged(finding("eval_mode"), kinds=("eval_mode",)),
        judged(kinds=("eval_mode",), part="blind-1"),
        judged(finding("eval_mode"), part="blind-1"),
        judged(kinds=("eval_mode",), loop="Lightning"),
    ]
    parts = totals(scripts)["parts"]
    assert parts[PLAIN]["tuned-on"]["of_faults"]["named"] == 1.0
    assert parts[PLAIN]["blind-1"]["of_faults"]["named"] == 0.0
    assert parts[PLAIN]["blind-1"]["sound_with_alarm"] == 1
    assert parts["Lightning"]["all"]["of_faults"] == {
        "scripts": 1,
        "kinds_of_faults": 1,
        "named": 0.0,
        "named_or_noted": 0.0,
        "named_first": 0.0,
        "noticed": 0.0,
    }


def test_what_is_done_on_purpose_is_no_alarm():
    scores = totals([judged(finding("eval_mode"), is_deliberate=True), judged(kinds=("eval_mode",))])
    assert scores["sound"] == scores["sound_with_alarm"] == 0
    assert scores["deliberate"] == {PLAIN: {"eval_mode": 1}}


def test_sound_script_that_fails_is_counted():
    scores = totals(
        [judged(error="RuntimeError: no"), judged(), judged(kinds=("eval_mode",), error="RuntimeError: no")]
    )
    assert (scores["sound"], scores["sound_failed"], scores["failed"]) == (2, 1, 2)


def test_confusion_has_cause_and_what_it_was_taken_for():
    taken = judged(finding("eval_mode"), kinds=("no_gradient",))
    named = judged(finding("no_gradient"), kinds=("no_gradient",))
    scores = totals([taken, named, judged(kinds=("no_gradient",))])
    assert scores["confusions"] == {"no_gradient -> eval_mode": 1}


def test_ways_are_compared_on_the_same_scripts():
    fault = judged(finding("no_gradient"), kinds=("no_gradient",))
    by_diagnose = judged(finding("frozen_attention"), kinds=("no_gradient",), losses=(1.0, 1.0))
    scores = compared([Beside(fault, by_diagnose), Beside(judged(), judged(finding("non_finite")))])
    assert scores["checkup"]["named"] == scores["diagnose alone"]["named"] == 1.0
    assert scores["loss only"]["named"] is None
    assert [way["sound_with_alarm"] for way in scores.values()] == [0, 1, 0]


@pytest.mark.parametrize(
    ("losses", "is_bad"),
    [
        ((2.0, 1.8), False),
        ((2.0, 1.95), True),
        ((-2.0, -2.2), False),
        ((-2.0, -1.95), True),
        ((2.0, float("nan"), 1.0), True),
        ((), True),
    ],
)
def test_loss_is_bad_that_does_not_fall(losses, is_bad):
    assert is_bad_loss(losses) is is_bad
