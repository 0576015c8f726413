"""Verdicts on stored trainings: every fault, and the sound runs, as they are judged today."""

import pytest

from attnwatch import diagnose
from benchmarks.verdicts.runs import STORED

# What is found first at half of the budget; None: nothing, and why that is so stands in docs/explanation/diagnosis.md.
FOUND = {
    "bytes/gpt2-plain-labels_shuffled-110": "unpromising",
    "text/minilm-plain-labels_shuffled-112": None,
    "recall/gpt2-plain-no_warm-up-109": "entropy_collapse",
    "images/vit-plain-no_warm-up-108": None,
    "bytes/gpt2-plain-rate_far_too_high-101": "exploding_logits",
    "recall/qwen3-plain-rate_far_too_high-102": "unpromising",
    "copy/opt-plain-scale_too_small-114": "unpromising",
    "text/short_minilm-plain-weights_too_small-115": "unpromising",
    "bytes/gpt2-plain-weights_too_small-113": None,
    "copy/llama-plain-one_batch-130": None,  # as training on one batch that is all data; the checkup knows the epoch
    "bytes/llama-plain-one_batch-115": None,
    "bytes/llama-plain-positions_missing-109": None,
    "bytes/llama-plain-queries_and_keys_left_out-106": "uniform_attention",
    "images/vit-plain-queries_and_keys_left_out-112": "uniform_attention",
    "copy/llama-plain-rate_far_too_low-106": "uniform_attention",
    "text/short_minilm-plain-rate_far_too_low-103": "unpromising",
    "bytes/llama-plain-rate_too_high-100": "exploding_logits",
    "copy/opt-plain-rate_too_high-101": "unpromising",
    "text/minilm-plain-weights_too_large-114": "unpromising",
    "copy/gpt2-plain-float16-128": "non_finite",
    "text/minilm-plain-float16-116": "non_finite",
    "recall/llama-plain-rate_that_rises-111": "entropy_collapse",
    "images/vit-plain-rate_that_rises-111": "unpromising",
    "recall/gpt2-plain-rate_too_low-104": "unpromising",
    "text/minilm-plain-rate_too_low-102": "unpromising",
    "bytes/opt-plain-scale_too_large-108": "exploding_logits",
    "copy/gpt2-plain-weights_decayed-122": "uniform_attention",
    "text/short_minilm-plain-weights_decayed-113": "uniform_attention",
    "recall/gpt2-plain-mask_ignored-121": None,  # it did no harm
    "recall/llama-plain-mask_inverted-118": "uniform_attention",
}


@pytest.mark.parametrize("name", FOUND)
def test_fault_is_found_by_its_name(name):
    run = STORED[name].until(0.5)
    diagnosis = diagnose(run.history, total_steps=run.budget)
    kinds = [finding.kind.value for finding in diagnosis.findings if not finding.is_note]
    assert (kinds[0] if kinds else None) == FOUND[name]
    assert diagnosis.status.is_alarm is (FOUND[name] is not None)


@pytest.mark.slow
def test_every_fault_is_among_them():
    faults = {run.recipe.fault for run in STORED.values()} - {""}
    assert faults == {STORED[name].recipe.fault for name in FOUND}


@pytest.mark.slow
def test_sound_runs_are_left_alone():
    runs = [run for run in STORED.values() if not run.recipe.fault]
    assert len(runs) == 100

    def flagged(share: float) -> set[str]:
        parts = (run.until(share) for run in runs)
        return {part.name for part in parts if diagnose(part.history, total_steps=part.budget).status.is_alarm}

    assert flagged(0.25) <= {"recall/gpt2-plain-sound-7"}  # it begins to learn just then
    assert flagged(0.5) == flagged(1.0) == set()
