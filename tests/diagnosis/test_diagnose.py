"""Verdicts on histories whose course is known."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import attnwatch
from attnwatch import AttentionHistory, ConfigurationError, FindingKind, RunStatus, Thresholds
from attnwatch.diagnosis import FindingActions
from attnwatch.diagnosis.findings.entropy_collapse import EntropyCollapse
from attnwatch.diagnosis.findings.exploding_logits import ExplodingLogits
from attnwatch.diagnosis.findings.frozen_attention import FrozenAttention
from attnwatch.diagnosis.findings.uniform_attention import UniformAttention
from attnwatch.diagnosis.hysteresis import flags
from attnwatch.statistics import Statistic
from tests.support.histories import HEADS, OBSERVATIONS, SITES, course, diagnose, falling


def up_to(history: AttentionHistory, observations: int) -> AttentionHistory:
    return dataclasses.replace(
        history,
        steps=history.steps[:observations],
        loss=history.loss[:observations],
        values={name: values[:observations] for name, values in history.values.items()},
    )


def kinds(history: AttentionHistory, **options) -> list[FindingKind]:
    return [finding.kind for finding in diagnose(history, **options).findings]


def pieces(*parts: tuple[float, int]) -> np.ndarray:
    """Values, each for so many observations."""
    return np.concatenate([np.full(number, value) for value, number in parts])


def without(history: AttentionHistory, observations: slice, sites=slice(None)) -> AttentionHistory:
    """The history, with nothing observed there."""
    for values in history.values.values():
        values[observations, sites] = np.nan
    return history


def test_ordinary_run_is_healthy():
    diagnosis = diagnose(course())
    assert (diagnosis.status, diagnosis.findings, diagnosis.risk) == (RunStatus.HEALTHY, (), 0.0)
    assert diagnosis.step == 390


@pytest.mark.parametrize(
    "history",
    {
        "nothing observed": course(observations=0),
        "everything nan": course(**dict.fromkeys(Statistic.registry, np.nan)),
        "too few observations": course(normalized_entropy=1.0, observations=8, every=50),
        "too few steps": course(normalized_entropy=1.0, every=1),
    }.values(),
    ids=lambda history: f"{len(history)} observations",
)
def test_nothing_is_claimed_without_evidence(history):
    diagnosis = diagnose(history)
    assert (diagnosis.status, diagnosis.findings) == (RunStatus.UNDETERMINED, ())


def test_step_of_an_empty_history_is_minus_one():
    assert diagnose(course(observations=0)).step == -1


def test_evidence_is_ten_observations_over_a_hundred_steps():
    uniform = {"normalized_entropy": 0.999}
    assert kinds(course(observations=9, every=20, **uniform)) == []
    assert kinds(course(observations=10, every=20, **uniform)) == [FindingKind.UNIFORM_ATTENTION]
    resumed = course(observations=10, every=9, normalized_entropy=0.001)
    assert kinds(dataclasses.replace(resumed, steps=resumed.steps + 5000)) == []
    resumed = course(observations=10, every=10, normalized_entropy=0.001)
    assert kinds(dataclasses.replace(resumed, steps=resumed.steps + 5000)) == [FindingKind.ENTROPY_COLLAPSE]


@pytest.mark.parametrize(
    ("sites", "statistics", "status"),
    [
        ([0], {"normalized_entropy": 0.999}, RunStatus.HEALTHY),
        ([0, 1], {"normalized_entropy": 0.999}, RunStatus.NOT_CONVERGING),
        ([0], {"normalized_entropy": 0.001}, RunStatus.HEALTHY),
        ([0, 1], {"normalized_entropy": 0.001}, RunStatus.UNSTABLE),
        ([0], {"nonfinite": 0.1}, RunStatus.UNSTABLE),
    ],
    ids=["uniform somewhere", "uniform in half", "collapse somewhere", "collapse in half", "non-finite somewhere"],
)
def test_status_is_that_of_half_the_sites_or_of_what_is_fatal_anywhere(sites, statistics, status):
    assert diagnose(course(sites=sites, **statistics)).status is status


def test_worst_finding_comes_first():
    history = course(sites=[0, 1, 2], normalized_entropy=0.999)
    history["max_logit"][:, 3] = pieces((5, 20), (1500, 20))[:, None]
    diagnosis = diagnose(history)
    assert [finding.kind.value for finding in diagnosis.findings] == ["uniform_attention", "exploding_logits"]
    assert diagnosis.risk == diagnosis.findings[0].severity
    json.dumps(dataclasses.asdict(diagnosis))  # plain numbers


def test_attention_that_stays_uniform_is_not_converging():
    diagnosis = diagnose(course(normalized_entropy=0.999, content_sensitivity=0.0))
    (finding,) = diagnosis.findings
    assert diagnosis.status is RunStatus.NOT_CONVERGING
    assert finding.kind is FindingKind.UNIFORM_ATTENTION
    assert (len(finding.sites), finding.step) == (SITES, 0)
    assert finding.evidence["normalized_entropy"] == pytest.approx(0.999)
    assert finding.evidence["content_sensitivity"] == 0.0
    assert "at 4 of 4 sites" in finding.message
    assert "optimizer" in finding.message
    assert diagnosis.risk == finding.severity == pytest.approx(0.9)


def test_one_uniform_site_is_named_and_does_not_condemn_the_run():
    diagnosis = diagnose(course(sites=[2], normalized_entropy=0.999))
    assert diagnosis.status is RunStatus.HEALTHY
    assert diagnosis.findings[0].sites == ("layers.2.attn",)
    assert diagnosis.findings[0].evidence["normalized_entropy"] == pytest.approx(0.999)
    assert diagnosis.risk < 0.6


def test_one_uniform_head_is_no_uniform_site():
    history = course()
    history["normalized_entropy"][:, :, 0] = 1.0
    assert kinds(history) == []


def test_evidence_of_uniform_attention_says_where_it_began_and_leaves_out_what_is_not_observed():
    history = course(sites=[1], normalized_entropy=np.linspace(1.0, 0.98, OBSERVATIONS), content_sensitivity=np.nan)
    (finding,) = diagnose(history, rules=[UniformAttention(growth=100)]).findings
    assert finding.evidence == pytest.approx({"normalized_entropy": 0.98, "normalized_entropy_at_start": 1.0})


@pytest.mark.parametrize(
    "entropy",
    [1 - falling(0.0005, 0.02), np.r_[np.ones(20), np.linspace(1, 0.7, 20)]],
    ids=["slow departure", "a plateau, then a drop"],
)
def test_uniform_attention_that_departs_is_learning(entropy):
    assert kinds(course(normalized_entropy=entropy)) == []


@pytest.mark.parametrize(
    "entropy",
    [
        1 - falling(1e-5, 5e-4),
        1 - np.linspace(0.02, 0.025, OBSERVATIONS),
        np.resize([0.999, 0.9975], OBSERVATIONS),
        pieces((1.0, 5), (0.98, 35)),
    ],
    ids=["next to nothing", "a small part", "noise", "long ago"],
)
def test_what_is_no_departure(entropy):
    assert kinds(course(normalized_entropy=entropy)) == [FindingKind.UNIFORM_ATTENTION]


def test_departure_counts_for_uniform_steps():
    """Entropy is the mean of three observations; at step 310 that of 100 steps ago has the new level."""
    history = course(observations=60, normalized_entropy=pieces((0.999, 20), (0.98, 40)))
    flagged = [bool(kinds(up_to(history, n))) for n in range(1, 61)]
    assert np.flatnonzero(np.diff(flagged)).tolist() == [9, 23, 40]
    assert diagnose(history).findings[0].step == 310
    assert diagnose(without(history, 21, [0])).findings[0].step == 310  # of the others


def test_departure_is_seen_beside_steps_that_were_not_observed():
    history = course(observations=60, normalized_entropy=pieces((0.999, 20), (0.98, 40)))
    history["normalized_entropy"][21] = np.nan
    assert diagnose(history).findings[0].step == 320


def test_attention_that_becomes_uniform_is_flagged_after_uniform_steps():
    history = course(normalized_entropy=pieces((0.9, 10), (0.99, 30)))
    flagged = [bool(kinds(up_to(history, n))) for n in range(1, OBSERVATIONS + 1)]
    assert flagged.index(True) == 20  # step 200
    assert diagnose(history).findings[0].step == 100
    history = course(observations=12, normalized_entropy=1 - pieces((0.025, 4), (1e-4, 8)))
    assert diagnose(history).findings[0].step == 0  # less uniform at first is no departure


CALM_ABOVE_BETWEEN = {
    "exploding logits": ("max_logit", 12.0, 2000.0, 700.0),
    "collapse": ("normalized_entropy", 0.5, 0.005, 0.015),
    "uniform": ("normalized_entropy", 0.9, 0.98, 0.96),
}


@pytest.mark.parametrize(("statistic", "calm", "above", "between"), CALM_ABOVE_BETWEEN.values(), ids=CALM_ABOVE_BETWEEN)
def test_flags_come_after_five_observations_and_go_after_five(statistic, calm, above, between):
    def is_found(*parts) -> bool:
        rest = (between, 24 - sum(number for _, number in parts))
        taken = {statistic: pieces((calm, 10), *parts, rest)}
        history = course(sites=[2], observations=34, every=50, **taken)
        return bool(kinds(history, rules=[UniformAttention(growth=1000)]))

    assert not is_found((above, 4))
    assert is_found((above, 5))
    assert is_found((above, 5), (calm, 4))
    assert not is_found((above, 5), (calm, 5))
    assert not is_found()


def test_flag_needs_patience_and_does_not_flicker():
    around = np.r_[np.full(20, 0.978), np.tile([0.965, 0.975], 10)]
    history = course(normalized_entropy=around)
    flagged = [bool(kinds(up_to(history, n))) for n in range(1, OBSERVATIONS + 1)]
    assert flagged.index(True) == 10  # step 100
    assert all(flagged[10:])


def test_flag_goes_down_after_as_much_patience():
    history = course(normalized_entropy=np.r_[np.full(30, 0.99), np.full(10, 0.9)])
    flagged = [bool(kinds(up_to(history, n))) for n in range(31, 41)]
    assert flagged == [True] * 4 + [False] * 6


def test_collapse_is_unstable():
    diagnosis = diagnose(course(normalized_entropy=falling(0.9, 0.001), entropy_without_sink=0.001))
    assert diagnosis.status is RunStatus.UNSTABLE
    assert diagnosis.findings[0].kind is FindingKind.ENTROPY_COLLAPSE
    assert diagnosis.risk == pytest.approx(0.9)


def test_collapse_of_one_site_carries_its_numbers():
    (finding,) = diagnose(course(sites=[1], normalized_entropy=0.004)).findings
    assert finding.sites == ("layers.1.attn",)
    assert (finding.is_note, finding.severity) == (True, 0.0)
    assert finding.evidence == pytest.approx({"normalized_entropy": 0.004})
    assert "(normalized entropy 0.0040)" in finding.message


def test_collapse_is_that_of_nearly_all_observed_heads():
    history = course(normalized_entropy=0.001)
    for entropy_of_one in (0.5, 0.015):
        history["normalized_entropy"][:, :, 0] = entropy_of_one
        assert kinds(history) == []
    history["normalized_entropy"][:, :, 0] = np.nan
    for values in history.values.values():
        values[:, 1, 0] = np.nan  # a site with two heads
    (finding,) = diagnose(history).findings
    assert len(finding.sites) == SITES
    assert kinds(history, rules=[EntropyCollapse(share=1)]) == [FindingKind.ENTROPY_COLLAPSE]


def test_sharp_heads_are_no_collapse():
    assert kinds(course(normalized_entropy=0.03, entropy_without_sink=0.1)) == []


def test_sink_is_told_apart_from_collapse():
    sink = {"normalized_entropy": 0.002, "sink_mass": 0.99}
    assert kinds(course(**sink, entropy_without_sink=2.5)) == []
    assert kinds(course(**sink, entropy_without_sink=0.001)) == [FindingKind.ENTROPY_COLLAPSE]
    assert kinds(course(**sink, entropy_without_sink=0.03, max_entropy=4.0)) == [FindingKind.ENTROPY_COLLAPSE]


def test_exploding_logits_are_unstable_wherever_they_are():
    diagnosis = diagnose(course(sites=[1], max_logit=falling(5, 20_000)))
    assert diagnosis.status is RunStatus.UNSTABLE
    assert diagnosis.findings[0].kind is FindingKind.EXPLODING_LOGITS
    assert diagnosis.findings[0].sites == ("layers.1.attn",)
    assert diagnosis.risk > 0.8


@pytest.mark.parametrize(
    "max_logit",
    [2000.0, -3000.0, falling(0.1, 900), pieces((-2000, 3), (1500, 37))],
    ids=["always large", "negative", "grown", "grown from far below"],
)
def test_large_logits_alone_are_no_explosion(max_logit):
    assert kinds(course(max_logit=max_logit)) == []


def test_explosion_between_the_first_two_observations_is_found():
    (finding,) = diagnose(course(max_logit=pieces((5, 1), (1500, 39)))).findings
    assert finding.kind is FindingKind.EXPLODING_LOGITS
    assert finding.step == 10
    assert finding.evidence["max_logit_at_start"] == 5


def test_attention_that_huge_logits_hold_still_is_not_frozen():
    falls = np.linspace(4.0, 2.0, OBSERVATIONS)
    assert kinds(course(loss=falls)) == [FindingKind.FROZEN_ATTENTION]
    assert kinds(course(loss=falls, max_logit=2000.0)) == []


@pytest.mark.parametrize(
    ("largest", "severity"), [(1000, 0.6), (10_000, 0.8), (1e9, 0.95)], ids=["at the limit", "far above", "without end"]
)
def test_exploding_logits_are_as_severe_as_they_are_large(largest, severity):
    history = course(max_logit=pieces((8, 2), (20, 1), (1500, 20), (largest, 17)))
    history["max_logit"][:, 1:] = 5e4  # large from the beginning
    history["max_logit"][:, 0, 1:] = 3  # its worst head is what counts
    history["max_logit"][25, 0] = 2e4
    (finding,) = diagnose(history).findings
    assert finding.sites == ("layers.0.attn",)
    assert finding.evidence == pytest.approx({"max_logit": largest, "max_logit_at_start": 8})
    assert finding.severity == pytest.approx(severity)


def test_growth_alone_can_be_asked_for():
    rules = [ExplodingLogits(enter=0, leave=0)]
    (finding,) = diagnose(course(max_logit=falling(0.01, 0.5)), rules=rules).findings
    assert finding.severity == pytest.approx(0.6)


@pytest.mark.parametrize(
    "statistics",
    [
        {"max_logit": falling(5, 20_000)},
        {"normalized_entropy": 0.001},
        {"normalized_entropy": 0.999, "content_sensitivity": 0.0},
        {"nonfinite": 0.5},
    ],
    ids=["exploding logits", "collapse", "uniform", "non-finite"],
)
def test_site_that_is_not_called_in_the_last_steps_is_judged_by_its_latest_numbers(statistics):
    called = diagnose(up_to(course(sites=[2], **statistics), 32)).findings[0]
    last_not_called = diagnose(without(course(sites=[2], **statistics), slice(32, None), [2])).findings[0]
    assert last_not_called.message == called.message
    assert last_not_called.evidence == pytest.approx(called.evidence)
    assert last_not_called.severity == pytest.approx(called.severity)


def test_site_that_is_not_called_in_the_first_steps_began_where_it_was_first_seen():
    history = course(sites=[2], max_logit=pieces((np.nan, 5), (10, 5), (5000, 30)))
    assert diagnose(history).findings[0].evidence["max_logit_at_start"] == 10
    uniform = without(course(normalized_entropy=0.999), slice(0, 5), [2])
    assert diagnose(uniform).findings[0].evidence["normalized_entropy_at_start"] == pytest.approx(0.999)
    uniform = without(course(sites=[2], normalized_entropy=0.999), slice(0, 5), [2])
    assert diagnose(uniform).findings[0].evidence["normalized_entropy_at_start"] == pytest.approx(0.999)


def test_nonfinite_values_are_reported_at_once():
    diagnosis = diagnose(course(observations=1, nonfinite=0.25, entropy=np.nan, normalized_entropy=np.nan))
    assert diagnosis.status is RunStatus.UNSTABLE
    assert diagnosis.risk == 1.0
    assert "25% of the query rows" in diagnosis.findings[0].message


def test_nonfinite_values_are_those_of_the_worst_head_now():
    history = course(observations=3)
    history["nonfinite"][:, 1, 2] = [0.9, 0.5, 0.25]
    history["nonfinite"][:, 3, 0] = [1.0, 0.0, 0.0]
    (finding,) = diagnose(history).findings
    assert (finding.sites, finding.evidence) == (("layers.1.attn",), {"nonfinite": 0.25})


def test_nonfinite_values_that_are_over_are_no_finding():
    assert kinds(course(nonfinite=np.r_[np.ones(5), np.zeros(35)])) == []


def noisy(rng, mean, scale):
    history = course(loss=falling(3, 1))
    history.values["normalized_entropy"][:] = mean[:, None, None] + rng.normal(0, scale, (OBSERVATIONS, SITES, HEADS))
    return history


def test_frozen_attention_while_the_loss_falls():
    frozen = noisy(np.random.default_rng(0), np.full(OBSERVATIONS, 0.6), 5e-4)
    diagnosis = diagnose(frozen)
    assert [finding.kind for finding in diagnosis.findings] == [FindingKind.FROZEN_ATTENTION]
    assert diagnosis.status is RunStatus.HEALTHY
    assert kinds(frozen, loss=np.full(OBSERVATIONS, 2.0)) == []
    assert kinds(frozen, loss=np.full(OBSERVATIONS, np.nan)) == []


def test_frozen_attention_does_not_flicker_with_the_noise_of_the_loss():
    rng = np.random.default_rng(0)
    history = course(observations=150, loss=4 * np.exp(-np.arange(150) / 100) + 0.1 * rng.normal(size=150))
    history.values["normalized_entropy"][:] = 0.7 + 1e-4 * rng.normal(size=(150, SITES, HEADS))
    flagged = [FindingKind.FROZEN_ATTENTION in kinds(up_to(history, n)) for n in range(20, 151)]
    assert any(flagged)
    assert np.abs(np.diff(np.array(flagged, dtype=int))).sum() <= 2


def test_attention_that_moves_is_not_frozen():
    assert kinds(noisy(np.random.default_rng(0), np.linspace(0.6, 0.5, OBSERVATIONS), 5e-4)) == []


def test_noise_that_hides_a_change_is_no_evidence_of_its_absence():
    assert kinds(noisy(np.random.default_rng(0), np.full(OBSERVATIONS, 0.6), 0.05)) == []


def drifting(slope: float, noise: float, *, start: float = 0.6, observations: int = 44, **options):
    """A run whose entropy alternates by `noise`, and from observation 24 on grows by `slope` with each."""
    mean = start + slope * np.maximum(np.arange(observations) - 24, 0)
    entropy = mean + noise * np.resize([1, -1], observations)
    options = {"loss": falling(3, 1, observations)} | options
    return course(observations=observations, normalized_entropy=entropy, **options)


def test_frozen_attention_is_claimed_after_five_windows_of_twenty():
    history = drifting(0, 1e-4)
    flagged = [bool(kinds(up_to(history, n))) for n in range(1, 45)]
    assert flagged.index(True) == 23
    assert all(flagged[23:])


@pytest.mark.parametrize(
    ("slope", "noise", "is_frozen"),
    [(5e-5, 6e-4, True), (1.5e-4, 3e-3, True), (9e-5, 1e-4, False), (3e-4, 4e-3, False)],
    ids=["hardly significant", "hardly large", "significant", "large"],
)
def test_frozen_attention_is_over_when_it_moves_clearly(slope, noise, is_frozen):
    assert kinds(up_to(drifting(slope, noise), 24)) == [FindingKind.FROZEN_ATTENTION]
    assert bool(kinds(drifting(slope, noise))) == is_frozen


@pytest.mark.parametrize(
    ("slopes", "noise"),
    [([9e-5, 9e-5, 9e-5], 1e-4), ([1e-4, -1e-4, 0], 1e-4), ([-3e-4, -3e-4, -3e-4], 4e-3), ([4e-5, 4e-5, 4e-5], 5e-4)],
    ids=["significant", "in opposite directions", "downwards", "four standard errors"],
)
def test_attention_that_drifts_slowly_is_not_frozen(slopes, noise):
    history = drifting(0, noise, loss=falling(3, 1, 44))
    history["normalized_entropy"][:] += (np.arange(44)[:, None] * slopes)[:, None]
    assert kinds(history) == []


def test_attention_that_never_changes_at_all_is_frozen():
    assert kinds(course(loss=falling(3, 1))) == [FindingKind.FROZEN_ATTENTION]


@pytest.mark.parametrize("start", [0.999, 0.9493], ids=["always", "becoming"])
def test_uniform_attention_is_not_called_frozen(start):
    slope = 0 if start > 0.99 else 5e-5
    assert FindingKind.FROZEN_ATTENTION not in kinds(drifting(slope, 3e-4, start=start))


def test_frozen_sites_are_named_with_their_numbers():
    history = course(observations=120, loss=falling(3, 1, 120))
    history["normalized_entropy"][:] += np.linspace(0, 0.3, 120)[:, None, None]
    frozen = np.r_[np.linspace(0.2, 0.5, 60), 0.6 + 1e-4 * np.resize([1, -1], 60)]
    frozen[100:] += 2e-5
    history["normalized_entropy"][:, 1] = frozen[:, None]
    (finding,) = diagnose(history).findings
    assert finding.sites == ("layers.1.attn",)
    assert finding.step == 600
    assert (finding.is_note, finding.severity) == (True, 0.0)
    assert finding.evidence == pytest.approx({"normalized_entropy_drift": 0}, abs=1e-6)
    assert diagnose(up_to(history, 110)).findings[0].evidence == pytest.approx(
        {"normalized_entropy_drift": 2e-5}, rel=0.02
    )


@pytest.mark.parametrize(
    ("loss", "is_falling"),
    [
        (falling(0.05, 0.03), True),
        (np.linspace(-1, -3, OBSERVATIONS), True),
        (falling(100, 98.5), False),
        (np.linspace(-100, -101.5, OBSERVATIONS), False),
        (falling(3, 2.8) + np.resize([1.0, -1.0], OBSERVATIONS), False),
        (pieces((3.0, 5), (1.0, 35)), False),
        (falling(1, 3), False),
        (np.r_[falling(3, 1)[:-1], np.nan], True),
    ],
    ids=["small", "negative", "too little", "too little and negative", "within noise", "long ago", "rising", "nan"],
)
def test_frozen_attention_is_a_remark_only_while_the_loss_falls(loss, is_falling):
    assert bool(kinds(drifting(0, 1e-4, observations=OBSERVATIONS, loss=loss))) == is_falling


def test_sites_that_were_not_observed_do_not_count():
    uniform = course(normalized_entropy=0.999)
    for values in uniform.values.values():
        values[:, 1:] = np.nan
    diagnosis = diagnose(uniform)
    assert diagnosis.status is RunStatus.NOT_CONVERGING
    assert "at 1 of 1 sites" in diagnosis.findings[0].message


def test_steps_at_which_nothing_was_observed_do_not_count():
    history = course(observations=80, every=5, loss=np.repeat(falling(3, 1), 2))
    history.loss[1::2] = 1e9
    assert diagnose(without(history, slice(1, None, 2))) == diagnose(course(loss=falling(3, 1)))


def test_site_that_is_missing_for_a_while_keeps_its_finding():
    collapse = without(course(sites=[1], normalized_entropy=0.001), slice(20, 32), [1])
    assert diagnose(collapse).findings[0].step == 0


def test_verdict_from_disk_is_the_verdict_of_the_run(tmp_path):
    history = course(normalized_entropy=0.999)
    history.save(tmp_path / "history.npz")
    assert diagnose(AttentionHistory.load(tmp_path / "history.npz")) == diagnose(history)


def test_diagnosis_reads_as_text():
    text = str(diagnose(course(normalized_entropy=0.999)))
    assert text.startswith("not converging (risk 0.90) at step 390\n- uniform_attention since step 0: attention stays")
    assert str(diagnose(course())) == "healthy (risk 0.00) at step 390"


def test_message_names_three_sites_and_says_what_to_do():
    def where(sites):
        message = diagnose(course(sites=sites, normalized_entropy=0.999)).findings[0].message
        return message.removeprefix("attention stays uniform (normalized entropy 0.999) ").split(" Queries")[0]

    assert where([0, 1, 2, 3]) == "at 4 of 4 sites (layers.0.attn, layers.1.attn, layers.2.attn and 1 more)."
    assert where([0, 1, 3]) == "at 3 of 4 sites (layers.0.attn, layers.1.attn, layers.3.attn)."


def test_finding_is_as_old_as_its_first_site():
    history = course(sites=[1], max_logit=pieces((5, 20), (2000, 20)))
    history["max_logit"][:, 2] = pieces((5, 10), (2000, 30))[:, None]
    assert diagnose(history).findings[0].step == 100


@pytest.mark.parametrize(
    ("statistics", "remedy"),
    [
        ({"normalized_entropy": 0.999}, "check that their projections are in the optimizer"),
        ({"normalized_entropy": 0.001}, "Gradients hardly reach queries and keys from there"),
        ({"max_logit": falling(5, 20_000)}, "Stable runs stay near 100"),
        ({"loss": falling(3, 1)}, "check requires_grad"),
        ({"nonfinite": 1.0}, "Go back to a checkpoint before this step"),
    ],
    ids=["uniform", "collapse", "exploding logits", "frozen", "non-finite"],
)
def test_every_finding_has_its_remedy(statistics, remedy):
    assert remedy in diagnose(course(**statistics)).findings[0].message


def test_what_is_no_history_is_refused():
    with pytest.raises(ConfigurationError, match="`history` must be an AttentionHistory, got str: take it from"):
        diagnose("attention.npz")


def test_history_prints_short():
    assert repr(course()) == "AttentionHistory(40 observations, steps 0 to 390, 4 sites)"


@pytest.mark.parametrize(
    ("loss", "got"),
    [([1.0, 2.0], r"shape \(2,\)"), ("abc", "str"), ({"loss": 1.0}, "dict"), ([[1.0], [2.0, 3.0]], "list")],
)
def test_loss_of_another_length_is_refused(loss, got):
    message = f"`loss` must have one number for each of the 40 observed steps, got {got}"
    with pytest.raises(ConfigurationError, match=message):
        diagnose(course(), loss=loss)


def test_loss_may_be_a_tensor():
    falls = torch.linspace(4.0, 2.0, OBSERVATIONS, requires_grad=True)
    (finding,) = diagnose(course(), loss=falls.bfloat16()).findings
    assert finding.kind is FindingKind.FROZEN_ATTENTION


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"thresholds": {"patience": 3}}, r"`thresholds` must be Thresholds or None, got {'patience': 3}"),
        ({"thresholds": Thresholds}, "`thresholds` must be Thresholds"),
        ({"risk_model": "none"}, r"`risk_model` must be RiskModel or None, got 'none'"),
    ],
    ids=str,
)
def test_what_is_no_threshold_is_refused(argument, message):
    with pytest.raises(ConfigurationError, match=message):
        attnwatch.diagnose(course(), **argument)


@pytest.mark.parametrize(
    ("kind", "argument", "message"),
    [
        (EntropyCollapse, {"enter": -1}, "`enter` must be a number of at least 0, got -1"),
        (EntropyCollapse, {"sink_mass": float("nan")}, "`sink_mass` must be a number of at least 0, got nan"),
        (Thresholds, {"widespread": True}, "`widespread` must be a number of at least 0, got True"),
        (Thresholds, {"min_steps": "100"}, "`min_steps` must be a number of at least 0, got '100'"),
        (Thresholds, {"patience": 0}, "`patience` must be an integer of at least 1, got 0"),
        (Thresholds, {"min_observations": 2.5}, "`min_observations` must be an integer of at least 1, got 2.5"),
        (FrozenAttention, {"window": 1}, "`window` must be an integer of at least 2, got 1"),
        (FrozenAttention, {"enabled": "no"}, "`enabled` must be True or False, got 'no'"),
        (UniformAttention, {"enter": 0.9}, "`leave` must not be above `enter`, got 0.95 and 0.9"),
        (EntropyCollapse, {"leave": 0.0}, "`enter` must not be above `leave`, got 0.01 and 0.0"),
        (ExplodingLogits, {"enter": 100}, "`leave` must not be above `enter`, got 500.0 and 100: .*give both"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else getattr(value, "__name__", ""),
)
def test_thresholds_are_checked(kind, argument, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**argument)


@given(
    st.lists(st.sampled_from(["enter", "leave", "between"]), min_size=1, max_size=30),
    st.integers(min_value=1, max_value=4),
)
def test_onset_is_that_of_a_state_machine(states, patience):
    raised_at, entering, leaving = -1, 0, 0
    for index, state in enumerate(states):
        entering = entering + 1 if state == "enter" else 0
        leaving = leaving + 1 if state == "leave" else 0
        if raised_at < 0 and entering >= patience:
            raised_at = index - patience + 1
        if leaving >= patience:
            raised_at = -1
    states = np.array(states)[:, None]
    found = flags(states == "enter", states == "leave", patience=patience)
    assert np.where(found.now, found.begin[-1], -1) == [raised_at]


def test_finding_is_new_when_it_comes_up_and_again_after_it_has_been_gone():
    actions = FindingActions({"uniform_attention": "stop"})
    uniform, healthy = diagnose(course(normalized_entropy=0.999)), diagnose(course())

    def new(diagnosis):
        return [(finding.kind.value, action) for finding, action in actions.new_findings(diagnosis)]

    assert new(uniform) == [("uniform_attention", "stop")]
    assert new(uniform) == []
    assert new(healthy) == []
    assert new(uniform) == [("uniform_attention", "stop")]
    assert new(diagnose(course(nonfinite=1.0))) == [("non_finite", "warn")]  # what is not in the mapping


def test_current_findings_survive_as_plain_text():
    diagnosis = diagnose(course(normalized_entropy=0.999, nonfinite=0.1))
    actions, resumed = FindingActions("warn"), FindingActions("warn")
    actions.new_findings(diagnosis)
    assert [type(kind) for kind in actions.state_dict()["current"]] == [str, str]
    assert actions.state_dict() == {"format": 1, "current": ["non_finite", "uniform_attention"], "notes": []}
    resumed.load_state_dict(actions.state_dict())
    assert resumed.new_findings(diagnosis) == []
    resumed.load_state_dict({"format": 1, "current": list(FindingKind), "notes": []})
    assert resumed.state_dict()["current"] == sorted(kind.value for kind in FindingKind)


@pytest.mark.parametrize(
    ("on_finding", "may_stop"), [("stop", True), ({"non_finite": "stop"}, True), ("warn", False), (print, False)]
)
def test_whether_a_finding_may_stop_the_training(on_finding, may_stop):
    assert FindingActions(on_finding).may_stop is may_stop
