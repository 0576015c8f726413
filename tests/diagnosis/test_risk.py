"""Signals of a run, and the risk that follows from them."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnwatch import AttentionHistory, ConfigurationError, FindingKind, RunStatus, Thresholds, diagnose
from attnwatch.diagnosis import RiskModel
from attnwatch.diagnosis.risk import default_risk_model
from attnwatch.diagnosis.signals import SIGNALS, evidence_of, signals_of
from tests.support.histories import course, noisy

NAMES = [signal.name for signal in SIGNALS]


def dead(**options):
    """Nothing moves, nothing is learned."""
    return noisy(start=0.999, end=0.999, noise=1e-5, loss=(2, 2), max_logit=0.1, **options)


def signals(history: AttentionHistory) -> dict[str, float]:
    return dict(zip(NAMES, signals_of(history), strict=True))


def evidence(history: AttentionHistory) -> dict[str, float]:
    return dict(zip(NAMES, evidence_of(history), strict=True))


def test_movement_is_the_distance_in_units_of_the_noise():
    found = signals(noisy(start=0.9, end=0.5, noise=0.01))
    between_means_of_ten = 0.4 * 90 / 99
    assert found["movement"] == pytest.approx(np.log10(between_means_of_ten / 0.01), abs=0.03)


def test_noise_alone_is_no_movement():
    found = [signals(noisy(start=0.7, end=0.7, seed=seed)) for seed in range(20)]
    assert np.median([each["movement"] for each in found]) < -0.8


def test_trend_of_the_loss_is_its_slope_in_standard_errors():
    history = noisy(loss=(4, 3.7))
    (slope, _), covariance = np.polyfit(np.arange(50.0), history.loss[50:], 1, cov=True)
    errors = -slope / np.sqrt(covariance[0, 0])
    assert signals(history)["loss_trend"] == pytest.approx(np.sign(errors) * np.log1p(abs(errors)), abs=1e-3)


def test_logits_are_those_of_the_largest_head_and_relative_to_the_start():
    history = noisy()
    history.values["max_logit"][:, 2, 1] = 100.0
    history.values["logit_std"][:] = np.geomspace(0.1, 10, 100)[:, None, None]
    found = signals(history)
    assert found["largest_logit"] == pytest.approx(2.0, abs=1e-6)
    ends = np.geomspace(0.1, 10, 100)
    assert found["logit_growth"] == pytest.approx(np.log10(ends[-10:].mean() / ends[:10].mean()), abs=1e-3)


def test_loss_that_falls_rises_or_makes_no_noise():
    assert signals(noisy(loss=(4, 2)))["loss_trend"] > 1
    assert signals(noisy(loss=(2, 4)))["loss_trend"] < -1
    assert abs(signals(noisy(loss=(2, 2)))["loss_trend"]) < 1.3
    quiet = noisy()
    assert signals(quiet)["loss_noise"] == pytest.approx(np.log10(0.05), abs=0.3)
    quiet = dataclasses.replace(quiet, loss=np.geomspace(4, 2, 100))
    assert signals(quiet)["loss_noise"] < -4


@pytest.mark.parametrize("end", [3.6, 1.0, 1e-4])
def test_loss_without_noise_is_no_fault_while_it_falls(end):
    """All data are one batch. A loss on its plateau has more noise than that in sound runs, and counts."""
    quiet = dataclasses.replace(noisy(), loss=np.geomspace(4, end, 100))
    assert np.isnan(evidence(quiet)["loss_noise"])
    converged = dataclasses.replace(quiet, loss=np.append(np.geomspace(4, end, 50), np.full(50, end)))
    assert np.isnan(evidence(converged)["loss_noise"]) == (end < 2)
    assert "the loss hardly varies" not in str(default_risk_model().contributions(quiet))


def test_evidence_is_all_signals_otherwise():
    on_plateau = noisy(loss=(2, 2))
    np.testing.assert_array_equal(evidence_of(on_plateau), signals_of(on_plateau))
    assert np.isnan(evidence_of(noisy(observations=5))).all()


def test_layers_count_by_their_largest_update_and_by_the_tokens_that_are_alike_now():
    updates, cosines = np.geomspace(0.1, 1e-4, 100), np.linspace(0.1, 0.9, 100)
    found = signals(noisy(update_ratio=updates, token_cosine=cosines))
    assert found["largest_update"] == pytest.approx(-1)
    assert found["token_similarity"] == pytest.approx(cosines[-10:].mean())
    without = signals(dataclasses.replace(noisy(), layers={}))
    assert np.isnan([without["largest_update"], without["token_similarity"]]).all()


def test_what_was_not_observed_is_not_known():
    history = noisy()
    loss = np.full(100, np.nan)
    found = signals(dataclasses.replace(history, loss=loss))
    assert np.isnan(found["loss_trend"])
    assert np.isnan(found["loss_noise"])
    assert np.isfinite([found[name] for name in NAMES if not name.startswith("loss")]).all()
    assert np.isnan(signals_of(noisy(observations=5))).all()


def test_history_that_is_thinner_at_its_beginning_says_the_same():
    whole = noisy(observations=400, every=1)
    kept = np.r_[0:200:4, 200:300:2, 300:400]
    values = {name: array[kept] for name, array in whole.values.items()}
    layers = {name: array[kept] for name, array in whole.layers.items()}
    parts = {"steps": whole.steps[kept], "values": values, "loss": whole.loss[kept], "layers": layers}
    thinned = dataclasses.replace(whole, **parts)
    np.testing.assert_allclose(signals_of(thinned), signals_of(whole), atol=0.15)


def model(**changes) -> RiskModel:
    number = len(SIGNALS)
    numbers = {
        "shares": np.array([0.1, 0.5]),
        "low": np.stack([np.zeros(number), np.ones(number)]),
        "high": np.stack([np.full(number, 2.0), np.full(number, 3.0)]),
        "width": np.full(number, 0.5),
        "below": np.ones(number),
        "above": np.full(number, 2.0),
        "offset": -1.0,
        "flag_at": 0.5,
    }
    return RiskModel(**numbers | changes)


def test_within_the_ranges_nothing_counts():
    inside = np.full((1, len(SIGNALS)), 1.5)
    for share in (0.1, 0.3, 0.5, None):
        assert not model().distances(inside, share).any()
    assert model().risks(np.zeros((1, 2 * len(SIGNALS))))[0] == pytest.approx(1 / (1 + np.e))


@pytest.mark.parametrize(
    ("share", "low", "high"),
    [(0.05, 0, 2), (0.1, 0, 2), (np.sqrt(0.05), 0.5, 2.5), (0.5, 1, 3), (1.0, 1, 3), (None, 0, 3)],
)
def test_ranges_are_those_of_the_share_of_the_budget(share, low, high):
    """Between the shares they are interpolated by its logarithm; without a budget the widest counts."""
    signal = np.zeros((1, len(SIGNALS))) + 1.5
    for value, place, expected in ((low - 0.25, 0, 0.5), (high + 0.5, len(SIGNALS), 1.0), (low - 9, 0, 4.0)):
        signal[0, 0] = value
        distances = model().distances(signal, share)[0]
        assert distances[place] == pytest.approx(expected)
        assert distances.sum() == pytest.approx(expected)


@given(st.lists(st.floats(-10, 10), min_size=len(SIGNALS), max_size=len(SIGNALS)), st.floats(0.01, 1))
def test_risk_is_a_share_and_more_distance_is_more_risk(values, share):
    distances = model().distances(np.array([values]), share)
    (risk,) = model().risks(distances)
    assert 0 <= risk <= 1
    assert (model().risks(distances + 0.5) >= risk).all()
    assert np.isfinite(model().risks(distances * 1e6)).all()


def test_thresholds_that_are_given_are_taken_as_they_are():
    uniform = dead(observations=80, every=1)
    assert diagnose(uniform, total_steps=200).findings
    assert not diagnose(uniform, total_steps=200, thresholds=Thresholds()).findings


def test_model_of_other_signals_is_refused():
    stored = default_risk_model().to_json() | {"signals": ["movement"]}
    with pytest.raises(ConfigurationError, match=r"`stored` is of other signals \(movement\): tune it anew"):
        RiskModel.from_json(stored)


def test_model_is_kept_as_numbers():
    kept = json.loads(json.dumps(default_risk_model().to_json()))
    assert RiskModel.from_json(kept).to_json() == kept
    assert kept["signals"] == NAMES
    assert min(kept["below"] + kept["above"]) >= 0


def test_run_that_learns_is_promising_and_one_that_stands_still_is_not():
    still = noisy(start=0.6, end=0.6, loss=(2, 2), max_logit=10.0, update_ratio=1e-4, token_cosine=0.9)
    learning = noisy(max_logit=10.0)
    good, bad = (diagnose(history, total_steps=2000) for history in (learning, still))
    assert good.status is RunStatus.HEALTHY
    assert bad.status is RunStatus.NOT_CONVERGING
    (finding,) = bad.findings
    assert finding.kind is FindingKind.UNPROMISING
    assert finding.sites == ()
    assert finding.severity == bad.risk > 0.5 > good.risk
    assert (
        "the optimizer hardly changes the weights (the largest update is 0.0001 times the weights)" in finding.message
    )
    assert "learning rate" in finding.message
    assert finding.evidence.keys() == set(NAMES)


def test_slow_beginning_is_worse_the_more_of_the_budget_is_over():
    slow = noisy(start=0.8, end=0.795, noise=0.005, loss=(4, 3.9))
    risks = [diagnose(slow, total_steps=steps).risk for steps in (2000, 4000, 10_000)]
    assert risks == sorted(risks, reverse=True)
    assert risks[0] > risks[-1] + 0.1
    assert diagnose(slow).risk <= min(risks)


def test_nothing_else_is_said_where_a_rule_says_why():
    diagnosis = diagnose(dead(), total_steps=2000)
    assert [finding.kind for finding in diagnosis.findings] == [FindingKind.UNIFORM_ATTENTION]
    assert diagnosis.risk >= diagnosis.findings[0].severity


@pytest.mark.parametrize(("total_steps", "is_judged"), [(None, False), (99, False), (150, True), (2000, False)])
def test_short_run_is_judged_after_a_tenth_of_it_and_a_very_short_one_not_at_all(total_steps, is_judged):
    uniform = dead(observations=40, every=1)
    is_found = bool(diagnose(uniform, total_steps=total_steps).findings)
    assert is_found is is_judged


@pytest.mark.parametrize(("total_steps", "step"), [(20_000, 1990), (100_000, 1990), (1000, 190)])
def test_uniform_attention_must_last_longer_than_a_warm_up(total_steps, step):
    still = dead(observations=400)
    looks = [still.first(number) for number in range(10, 400, 5)]
    found = [look.steps[-1] for look in looks if diagnose(look, total_steps=total_steps).findings]
    assert step <= found[0] <= step + 100


def test_uniform_attention_is_no_alarm_where_the_run_is_as_sound_ones_are():
    """The loss falls fast, logits are ordinary: others looked like this and learned."""
    early = noisy(start=0.980, end=0.975, noise=1e-5, observations=30, max_logit=8.0, logit_std=np.linspace(1, 1.2, 30))
    rules = diagnose(early, total_steps=1000, risk_model=RiskModel.zero())
    assert [finding.kind for finding in rules.findings] == [FindingKind.UNIFORM_ATTENTION]
    diagnosis = diagnose(early, total_steps=1000)
    assert [(finding.kind, finding.is_note) for finding in diagnosis.findings] == [
        (FindingKind.UNIFORM_ATTENTION, True)
    ]
    assert diagnosis.status is RunStatus.HEALTHY


def test_run_that_was_not_watched_from_its_beginning_is_not_judged_by_how_far_it_came():
    late = dead()
    late = dataclasses.replace(late, steps=late.steps + 1000)
    diagnosis = diagnose(late, total_steps=2000)
    assert [finding.is_note for finding in diagnosis.findings] == [True]
    assert diagnosis.status is RunStatus.UNDETERMINED
    assert np.isnan(diagnosis.risk)
    assert diagnose(dataclasses.replace(late, steps=late.steps - 1000), total_steps=2000).status.is_alarm
    collapsed = course(normalized_entropy=0.001)
    collapsed = dataclasses.replace(collapsed, steps=collapsed.steps + 1000)
    assert diagnose(collapsed, total_steps=2000).status is RunStatus.UNSTABLE


def grows_at(observation: int) -> AttentionHistory:
    """Largest logits jump there, and stay."""
    return noisy(max_logit=np.where(np.arange(100) < observation, 10.0, 300.0))


def model_of_logits() -> RiskModel:
    """Logits of more than 100 are a risk of 0.73; nothing else counts."""
    unknowing = RiskModel.zero()
    place = NAMES.index("largest_logit")
    high, above = unknowing.high.copy(), unknowing.above.copy()
    high[0, place], above[place] = 2.0, 20.0
    return dataclasses.replace(unknowing, shares=np.array([0.1]), high=high, above=above, offset=-1.0, flag_at=0.7)


@pytest.mark.slow
def test_high_risk_is_told_once_it_has_lasted():
    history, foresees = grows_at(50), model_of_logits()
    found = {}
    for number in range(40, 100):
        diagnosis = diagnose(history.first(number), total_steps=1000, risk_model=foresees)
        is_high = diagnosis.risk >= foresees.flag_at
        found[number] = (is_high, [finding.step for finding in diagnosis.findings])
    first_high = min(number for number, (is_high, _) in found.items() if is_high)
    assert not any(steps for number, (_, steps) in found.items() if number < first_high + 5)
    for number in range(first_high + 5, 100):
        ((step,),) = [found[number][1]]
        assert first_high - 1 <= step / 10 < first_high + 5  # since then, however long ago that is


@pytest.mark.parametrize("total_steps", [0, -1, 1.5, True])
def test_budget_that_is_none_is_refused(total_steps):
    with pytest.raises(ConfigurationError, match="`total_steps` must be an integer of at least 1 or None, got"):
        diagnose(noisy(), total_steps=total_steps)
