"""The first page about a run: what it says, and when."""

import dataclasses
from pathlib import Path

import numpy as np

from attnwatch import FindingKind, RunStatus
from attnwatch.dashboard.card import RunCard, card_markdown
from attnwatch.diagnosis import Diagnosis, Finding
from tests.support.histories import course

SOUND = Diagnosis(RunStatus.HEALTHY, (), 390, risk=0.2)


def test_sound_run_has_a_verdict_a_risk_and_what_it_rests_on():
    history = dataclasses.replace(course(), total_steps=800, coverage={"layers.9.attn": "it was not called"})
    checkup = {
        "eval_mode": "FOUND: it is in eval mode",
        "causality": "ok",
        "tied": "ok",
        "stale": "not checked: no step",
    }
    card = RunCard(
        SOUND,
        history,
        checkup,
        changes=[(4, "heads go"), (8, "100% of the tokens")],
        remarks=["Of short sequences."],
        report=Path("logs/report.html"),
    )
    assert card_markdown(card).split("\n\n") == [
        "## healthy: risk 0.20, step 390",
        "No fault was found, and the risk is low. Nothing needs to be done.",
        "**Risk:** 0.20 is the estimated share of runs like this one that fail. It rests on 50% of the run. A run that "
        "stays above 0.82 is reported.",
        "**Checkup of the first steps:** 1 found a fault: eval_mode, 2 ok, 1 skipped: stale (no step)",
        "**Layers that differ from the others:** none",
        "**Observed:** 4 of 5 attention layers; 40 observations, steps 0 to 390. Not observed: layers\\.9\\.attn "
        "(it was not called)",
        "**Changes of the model:** step 4: heads go; step 8: 100% of the tokens",
        "**Report:** `logs/report.html`",
        "Of short sequences.",
    ]


def test_run_is_not_called_sound_where_half_of_its_kind_fail():
    words = card_markdown(RunCard(dataclasses.replace(SOUND, risk=0.61)))
    assert "Nothing needs to be done" not in words
    assert "compare the curves with those of an earlier run" in words


def test_unknown_length_and_unknown_risk_are_said():
    history = course()
    assert "The length of the run is not known" in card_markdown(RunCard(SOUND, history))
    unknown = Diagnosis(RunStatus.UNDETERMINED, (), 390)
    assert (
        "**Risk:** not known yet. It needs 10 observations over 100 steps, from the start of the run, and"
        in card_markdown(RunCard(unknown, history))
    )


def test_verdict_alone_needs_no_history():
    finding = Finding(FindingKind.NON_FINITE, (), 20, 1.0, "nan.")
    words = card_markdown(RunCard(Diagnosis(RunStatus.UNSTABLE, (finding,), 30, risk=1.0)))
    assert "| non finite | 20 | 1.00 | whole run |" in words
    assert "Stop it" in words
    assert "Observed" not in words


def _odd(history):
    """Return what a card says of the layers that differ from the others."""
    words = card_markdown(RunCard(Diagnosis(RunStatus.HEALTHY, (), 30, risk=0.1), history))
    return words.partition("**Layers that differ from the others:** ")[2].partition("\n")[0]


def test_layer_unlike_the_others_is_named_with_its_number():
    history = course()
    assert _odd(history) == "none"
    history.values["normalized_entropy"][-1, 2] = 0.9
    history.values["sink_mass"][-1, 1] += 0.05  # too little to be seen in a picture
    history.values["max_logit"][-1, 3] = np.nan
    assert _odd(history) == "layer\\_2 (normalized entropy 0.9, median 0.5)"
    few = dataclasses.replace(
        history, sites=history.sites[:3], values={name: each[:, :3] for name, each in history.values.items()}
    )
    assert _odd(few) == "none"  # which of three is odd nobody can tell
