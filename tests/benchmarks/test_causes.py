"""Scores of causes: what counts as named, and how shares are taken."""

import pytest

from attnwatch import Cause, Diagnosis, Finding, FindingKind, RunStatus
from benchmarks.causes.held_out import blind_cases, other_cases
from benchmarks.causes.scores import Ranked, names_of, reliability, summary
from benchmarks.checkup.architectures import ARCHITECTURES
from benchmarks.checkup.faults import FAULTS
from benchmarks.checkup.held_out import HELD_OUT
from benchmarks.checkup.scripts import Case


def ranked(fault: str, kinds: tuple[str, ...], *causes: tuple[str, float]) -> Ranked:
    named = tuple(Cause(name, score) for name, score in causes)
    finding = Finding(FindingKind.UNPROMISING, (), 5, 0.8, "", causes=named)
    diagnosis = Diagnosis(RunStatus.NOT_CONVERGING, (finding,) if causes else (), 10)
    return Ranked(Case(fault, "llama", ARCHITECTURES["llama"], kinds), diagnosis)


RUNS = [
    ranked("slow", ("rate_too_low",), ("rate_too_low", 0.6), ("no_gradient", 0.2)),
    ranked("slow", ("rate_too_low",), ("no_gradient", 0.6), ("rate_too_low", 0.3)),
    ranked("frozen", ("frozen_parameters",), ("not_in_optimizer", 0.6)),
    ranked("detached", ("broken_gradient_path",), ("no_gradient", 0.6)),
    ranked("unseen", ("rate_too_high",)),
]


def test_shares_are_of_runs_with_a_finding():
    scores = summary(RUNS)
    assert (scores["runs"], scores["with_finding"], scores["faults_with_finding"]) == (5, 4, 3)
    assert (scores["top1"], scores["top3"]) == (2 / 4, 3 / 4)
    assert scores["top1_by_fault"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert (scores["top1_same_traces_as_one"], scores["top3_same_traces_as_one"]) == (3 / 4, 1)


def test_reliability_counts_every_cause_that_was_named():
    middle, low = (next(each for each in reliability(RUNS) if each["causes"] == number) for number in (4, 1))
    assert (middle["told"], middle["right"]) == (pytest.approx(0.6), 2 / 4)
    assert (low["told"], low["right"]) == (0.2, 0.0)


def test_notes_are_no_findings():
    note = Finding(FindingKind.FROZEN_ATTENTION, (), 5, 0.0, "", is_note=True, causes=(Cause("rate_too_low", 0.9),))
    only_note = Ranked(RUNS[0].case, Diagnosis(RunStatus.HEALTHY, (note,), 10))
    assert not only_note.is_found
    assert summary([only_note])["with_finding"] == 0


def test_held_out_faults_are_no_tuned_ones():
    tuned = {fault.name for fault in (*FAULTS, *HELD_OUT)}
    cases = [*blind_cases(), *other_cases()]
    assert not tuned & {case.name for case in blind_cases()}
    assert all(names_of(case) for case in other_cases())
    assert not {case.architecture for case in other_cases()} & set(ARCHITECTURES)
    assert len({(case.name, case.architecture) for case in cases}) == len(cases)
