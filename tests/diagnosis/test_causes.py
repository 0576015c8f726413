"""Causes of findings: ranked by what a history shows, settled by what a checkup has found."""

import numpy as np
import pytest

import attnwatch
from attnwatch import Cause, CauseRule, ConfigurationError, Finding, FindingKind
from attnwatch.dashboard.markdown import diagnosis_markdown
from benchmarks.verdicts.runs import STORED
from tests.support.histories import OBSERVATIONS, course, diagnose

# First cause at half of the budget.
FIRST = {
    "bytes/gpt2-plain-rate_far_too_high-101": "rate_too_high",
    "recall/llama-plain-rate_that_rises-111": "rate_too_high",
    "copy/opt-plain-rate_too_high-101": "rate_too_high",
    "text/minilm-plain-rate_too_low-102": "rate_too_low",
    "text/short_minilm-plain-rate_far_too_low-103": "rate_too_low",
    "bytes/llama-plain-queries_and_keys_left_out-106": "not_in_optimizer",
    "copy/gpt2-plain-weights_decayed-122": "weights_shrink",
    "copy/gpt2-plain-float16-128": "nonfinite_gradient",
    "text/minilm-plain-weights_too_large-114": "initialisation",
    "bytes/gpt2-plain-labels_shuffled-110": "labels_unrelated",
    "recall/qwen3-plain-mask_inverted-119": "mask_inverted",
}


def judged(name: str, **options) -> attnwatch.Diagnosis:
    run = STORED[name].until(0.5)
    return attnwatch.diagnose(run.history, total_steps=run.budget, **options)


def uniform(**options) -> attnwatch.Diagnosis:
    """A run whose queries and keys do not learn while its loss falls."""
    loss = np.geomspace(4, 2, OBSERVATIONS) * np.exp(0.02 * np.random.default_rng(0).normal(size=OBSERVATIONS))
    return diagnose(course(normalized_entropy=0.999, logit_std=0.01, loss=loss), **options)


def found(kind: str, *, is_note: bool = False) -> Finding:
    """What a checkup says."""
    return Finding(FindingKind(kind), (), 3, 0.0 if is_note else 0.9, f"{kind} it is", is_note=is_note)


@pytest.mark.parametrize("name", FIRST)
def test_fault_of_a_stored_run_is_named_first(name):
    finding = judged(name).findings[0]
    assert finding.causes[0].name == FIRST[name]


@pytest.mark.parametrize("name", FIRST)
def test_causes_are_ranked_and_say_what_speaks_for_them(name):
    for finding in judged(name).findings:
        scores = [cause.score for cause in finding.causes]
        assert 1 <= len(scores) <= 3 or finding.is_note
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1 or finding.is_note
        for cause in finding.causes:
            assert all((cause.speaks_for, cause.title, cause.remedy))
            assert not cause.is_fact


def test_clues_have_numbers():
    (first, *_) = uniform().findings[0].causes
    assert first.name == "not_in_optimizer"
    steady = "the spread of the logits stays within a factor of 1.00 of its initial value in all layers"
    assert steady in first.speaks_for
    assert any("the loss falls (4" in words for words in first.speaks_for)


def test_runs_without_a_loss_have_causes_too():
    causes = diagnose(course(normalized_entropy=0.999, logit_std=0.01)).findings[0].causes
    assert causes
    assert not any("loss falls" in words for cause in causes for words in cause.speaks_for)


def test_notes_have_no_causes_but_those_that_ask_for_a_check():
    (note,) = diagnose(course(sites=[0], normalized_entropy=0.999)).findings
    assert (note.is_note, note.causes) == (True, ())
    (frozen,) = diagnose(course(loss=np.linspace(4, 2, OBSERVATIONS))).findings
    assert frozen.kind is FindingKind.FROZEN_ATTENTION
    assert frozen.causes
    assert "likely causes" not in str(frozen)  # a note does not sound like an alarm


def test_what_a_checkup_has_found_is_the_cause():
    diagnosis = uniform(checked=[found("frozen_parameters")])
    fact, finding = diagnosis.findings
    assert (fact.kind.value, fact.causes) == ("frozen_parameters", ())
    (cause,) = finding.causes
    assert (cause.name, cause.score, cause.is_fact) == ("frozen_parameters", 1.0, True)
    assert "  cause:\n  1. frozen_parameters: the checkup found it at step 3, see its finding." in str(finding)


def test_note_of_a_checkup_speaks_for_a_cause():
    before = {cause.name: cause for cause in uniform().findings[0].causes}
    after = uniform(checked=[found("frozen_parameters", is_note=True)]).findings[0].causes
    assert after[0].name == "frozen_parameters"
    assert after[0].score > before["frozen_parameters"].score
    assert "the checkup noted: frozen_parameters it is" in after[0].speaks_for


def test_what_a_checkup_has_ruled_out_is_no_cause():
    names = [cause.name for cause in uniform(ruled_out=["not_in_optimizer", "no_gradient"]).findings[0].causes]
    assert names[0] == "frozen_parameters"
    assert not {"not_in_optimizer", "no_gradient"} & set(names)
    assert uniform(ruled_out=list(CauseRule.registry)).findings[0].causes == ()


@pytest.mark.parametrize("ruled_out", ["not_in_optimizer", ["nothing_at_all"], [3]], ids=str)
def test_ruled_out_has_names_of_checks_or_causes(ruled_out):
    with pytest.raises(ConfigurationError, match=r"`ruled_out` must have names of checks or causes, .*rate_too_low"):
        uniform(ruled_out=ruled_out)


def test_causes_are_a_list_after_the_message():
    lines = str(uniform().findings[0]).splitlines()
    assert lines[0].startswith("uniform_attention since step 0: attention stays uniform")
    assert lines[1] == "  likely causes (share of the evidence):"
    assert lines[2].startswith("  1. not_in_optimizer (0.")
    assert "For: " in lines[2]
    assert lines[3].startswith("  2. frozen_parameters (0.")


def test_causes_with_the_same_traces_say_so():
    finding = uniform().findings[0]
    assert "Same evidence as cause 1." in str(finding)
    assert str(finding).count("stays within") == 1


def test_the_same_causes_are_shown_once():
    diagnosis = judged("recall/llama-plain-rate_that_rises-111")
    kinds = [finding.kind.value for finding in diagnosis.findings if not finding.is_note]
    assert kinds == ["entropy_collapse", "exploding_logits"]
    assert diagnosis.findings[0].causes == diagnosis.findings[1].causes
    assert str(diagnosis).count("likely causes") == 1
    assert diagnosis_markdown(diagnosis).count("Likely causes") == 1
    assert "- exploding_logits since" in str(diagnosis)


def test_markdown_has_the_causes_as_a_list_within_the_finding():
    parts = diagnosis_markdown(uniform()).split("\n\n")
    assert parts[3].startswith("- **uniform attention** since step 0")
    assert parts[5] == "    Likely causes (share of the evidence):"
    assert parts[6].splitlines()[0].startswith("    1. **not in optimizer** (0.")
    assert parts[6].splitlines()[1].startswith("    2. **frozen parameters** (0.")


def test_findings_without_causes_read_as_before():
    finding = Finding(FindingKind.NON_FINITE, ("a",), 20, 1.0, "nan at a.")
    assert str(finding) == "non_finite since step 20: nan at a."
    assert str(Cause("rate_too_low", 0.5, title="slow")) == "rate_too_low (0.50): slow."


# What the risk rests on


def test_run_at_risk_says_why():
    diagnosis = judged("images/vit-plain-no_warm-up-109")
    assert diagnosis.status.value == "at_risk"
    assert diagnosis.reasons[:2] == (
        "attention logits are large (the largest logit is 108)",
        "the states of the tokens are alike (their mean cosine is 0.81)",
    )
    assert "- the risk rests on: attention logits are large (" in str(diagnosis)
    assert "The risk rests on: attention logits are large (" in diagnosis_markdown(diagnosis)


def test_reasons_are_given_for_runs_at_risk_only():
    assert uniform().reasons == ()
    assert diagnose(course()).reasons == ()


def test_unpromising_says_which_numbers_it_rests_on_and_claims_no_repeated_data():
    message = judged("copy/opt-plain-labels_shuffled-120").findings[0].message
    assert "queries hardly tell keys apart (the largest logit is 0.223)" in message
    assert "the loss hardly varies (by 0.06% from one observation to the next)" in message
    assert "same data" not in message


def test_causes_without_clear_evidence_are_called_possible():
    causes = (Cause("rate_too_low", 0.2, ("it falls slowly",)), Cause("order_ignored", 0.1, ("it is stuck",)))
    finding = Finding(FindingKind.UNPROMISING, (), 20, 0.8, "so it is.", causes=causes)
    assert "  possible causes (share of the evidence: little):" in str(finding)
    assert "likely" not in str(finding)
