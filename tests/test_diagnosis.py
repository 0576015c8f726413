"""Verdicts on histories whose course is known."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnwatch import AttentionHistory, ConfigurationError, FindingKind, RunStatus, Thresholds, diagnose
from attnwatch.diagnosis.hysteresis import onset
from attnwatch.metrics import STATISTICS

SITES, HEADS, OBSERVATIONS = 4, 3, 40
ORDINARY = {
    "entropy": 2.0,
    "normalized_entropy": 0.5,
    "normalized_entropy_stderr": 0.01,
    "max_entropy": 4.0,
    "max_logit": 12.0,
    "logit_std": 2.0,
    "sink_mass": 0.05,
    "confidence": 0.3,
    "entropy_without_sink": 2.0,
    "distance": 20.0,
    "content_sensitivity": 0.4,
    "nonfinite": 0.0,
}


def course(*, sites=slice(None), observations=OBSERVATIONS, every=10, loss=None, **statistics) -> AttentionHistory:
    """An ordinary run in which these statistics take this course (a number, or one per observation) at `sites`."""
    values = {name: np.full((observations, SITES, HEADS), ORDINARY[name], np.float32) for name in STATISTICS}
    for name, taken in statistics.items():
        taken = np.broadcast_to(np.asarray(taken, dtype=np.float32), observations)
        values[name][:, sites] = taken[:, None, None]
    steps = np.arange(observations) * every
    loss = np.full(observations, np.nan) if loss is None else np.asarray(loss, dtype=np.float64)
    return AttentionHistory(steps, tuple(f"layers.{i}.attn" for i in range(SITES)), values, loss)


def up_to(history: AttentionHistory, observations: int) -> AttentionHistory:
    return dataclasses.replace(
        history,
        steps=history.steps[:observations],
        loss=history.loss[:observations],
        values={name: values[:observations] for name, values in history.values.items()},
    )


def kinds(history: AttentionHistory, **options) -> list[FindingKind]:
    return [finding.kind for finding in diagnose(history, **options).findings]


def falling(first: float, last: float, observations: int = OBSERVATIONS) -> np.ndarray:
    return np.geomspace(first, last, observations)


def test_ordinary_run_is_healthy():
    diagnosis = diagnose(course())
    assert (diagnosis.status, diagnosis.findings, diagnosis.risk) == (RunStatus.HEALTHY, (), 0.0)
    assert diagnosis.step == 390


@pytest.mark.parametrize(
    "history",
    {
        "nothing observed": course(observations=0),
        "everything nan": course(**dict.fromkeys(STATISTICS, np.nan)),
        "too few observations": course(normalized_entropy=1.0, observations=8, every=50),
        "too few steps": course(normalized_entropy=1.0, every=1),
    }.values(),
    ids=lambda history: f"{len(history)} observations",
)
def test_nothing_is_claimed_without_evidence(history):
    diagnosis = diagnose(history)
    assert (diagnosis.status, diagnosis.findings) == (RunStatus.UNDETERMINED, ())


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
    assert diagnosis.risk < 0.6


@pytest.mark.parametrize(
    "entropy",
    [1 - falling(0.0005, 0.02), np.r_[np.ones(20), np.linspace(1, 0.7, 20)]],
    ids=["slow departure", "a plateau, then a drop"],
)
def test_uniform_attention_that_departs_is_learning(entropy):
    assert kinds(course(normalized_entropy=entropy)) == []


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


def test_sharp_heads_are_no_collapse():
    assert kinds(course(normalized_entropy=0.03, entropy_without_sink=0.1)) == []


def test_sink_is_told_apart_from_collapse():
    sink = {"normalized_entropy": 0.002, "sink_mass": 0.99}
    assert kinds(course(**sink, entropy_without_sink=2.5)) == []
    assert kinds(course(**sink, entropy_without_sink=0.001)) == [FindingKind.ENTROPY_COLLAPSE]


def test_exploding_logits_are_unstable_wherever_they_are():
    diagnosis = diagnose(course(sites=[1], max_logit=falling(5, 20_000)))
    assert diagnosis.status is RunStatus.UNSTABLE
    assert diagnosis.findings[0].kind is FindingKind.EXPLODING_LOGITS
    assert diagnosis.findings[0].sites == ("layers.1.attn",)
    assert diagnosis.risk > 0.8


@pytest.mark.parametrize("max_logit", [2000.0, -3000.0, falling(0.1, 150)], ids=["always large", "negative", "grown"])
def test_large_logits_alone_are_no_explosion(max_logit):
    assert kinds(course(max_logit=max_logit)) == []


def test_nonfinite_values_are_reported_at_once():
    diagnosis = diagnose(course(observations=1, nonfinite=0.25, entropy=np.nan, normalized_entropy=np.nan))
    assert diagnosis.status is RunStatus.UNSTABLE
    assert diagnosis.risk == 1.0
    assert "25% of the query rows" in diagnosis.findings[0].message


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


def test_sites_that_were_not_observed_do_not_count():
    uniform = course(normalized_entropy=0.999)
    for values in uniform.values.values():
        values[:, 1:] = np.nan
    diagnosis = diagnose(uniform)
    assert diagnosis.status is RunStatus.NOT_CONVERGING
    assert "at 1 of 1 sites" in diagnosis.findings[0].message


def test_verdict_from_disk_is_the_verdict_of_the_run(tmp_path):
    history = course(normalized_entropy=0.999)
    history.save(tmp_path / "history.npz")
    assert diagnose(AttentionHistory.load(tmp_path / "history.npz")) == diagnose(history)


def test_diagnosis_reads_as_text():
    text = str(diagnose(course(normalized_entropy=0.999)))
    assert text.startswith("not converging (risk 0.90) at step 390\n- uniform_attention since step 0: attention stays")


def test_what_is_no_history_is_refused():
    with pytest.raises(ConfigurationError, match="`history` must be an AttentionHistory, got str: take it from"):
        diagnose("attention.npz")


def test_history_prints_short():
    assert repr(course()) == "AttentionHistory(40 observations, steps 0 to 390, 4 sites)"


def test_loss_of_another_length_is_refused():
    with pytest.raises(ConfigurationError, match="`loss` must have one value for each of the 40 observed steps"):
        diagnose(course(), loss=[1.0, 2.0])


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"collapse_enter": -1}, "`collapse_enter` must be a number"), ({"patience": 0}, "`patience` must be at least 1")],
    ids=["negative", "no patience"],
)
def test_thresholds_are_checked(argument, message):
    with pytest.raises(ConfigurationError, match=message):
        Thresholds(**argument)


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
    assert onset(states == "enter", states == "leave", patience=patience) == [raised_at]
