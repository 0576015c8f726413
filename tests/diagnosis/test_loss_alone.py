"""Runs of which only the loss is known: what can be said of them, and what not."""

import numpy as np
import pytest

from attnwatch import AttentionHistory, RunStatus, diagnose
from attnwatch.diagnosis.findings.loss_diverged import LossDiverged
from attnwatch.layers import LayerStatistic
from attnwatch.statistics import Statistic
from tests.support.histories import course, falling

ATTENTION_RULES = {"uniform_attention", "frozen_attention", "entropy_collapse", "unpromising", "non_finite"}


def of_loss(loss, *, every=10, total_steps=None) -> AttentionHistory:
    loss = np.asarray(loss, dtype=np.float64)
    nothing = dict.fromkeys(Statistic.registry, np.empty((len(loss), 0, 0), dtype=np.float32))
    layers = dict.fromkeys(LayerStatistic.registry, np.empty((len(loss), 0), dtype=np.float32))
    return AttentionHistory(np.arange(len(loss)) * every, (), nothing, loss, total_steps=total_steps, layers=layers)


def noise(seed: int, number: int = 60) -> np.ndarray:
    return np.exp(0.1 * np.random.default_rng(seed).normal(size=number))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "loss",
    [falling(5, 1, 60), np.full(60, 3.0), np.r_[falling(5, 1, 40), np.full(20, 3.0)], np.r_[2.0, np.full(59, 2.1)]],
    ids=["falls", "flat", "rebounds", "rises a little"],
)
def test_what_a_loss_does_not_show_stays_undetermined(loss, seed):
    diagnosis = diagnose(of_loss(loss * noise(seed), total_steps=600))
    assert diagnosis.status is RunStatus.UNDETERMINED
    assert diagnosis.findings == ()
    assert np.isnan(diagnosis.risk)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("start", [2.0, -3.0], ids=["positive", "negative"])
def test_loss_that_stays_above_its_start_has_diverged(start, seed):
    rise = np.r_[np.zeros(20), np.linspace(0, 4, 20), np.full(20, 4.0)]
    diagnosis = diagnose(of_loss(start + rise * noise(seed) + 0.02 * (noise(seed + 9) - 1)))
    assert diagnosis.status is RunStatus.UNSTABLE
    (finding,) = diagnosis.findings
    assert finding.kind.value == "loss_diverged"
    assert 200 <= finding.step <= 300
    assert finding.evidence["now"] > finding.evidence["start"]
    assert not ATTENTION_RULES & {cause.name for cause in finding.causes}


def test_rise_that_counts_can_be_chosen():
    history = of_loss(np.r_[np.full(30, 2.0), np.full(30, 2.1)])
    assert diagnose(history).status is RunStatus.UNDETERMINED
    assert diagnose(history, rules=[LossDiverged(enter=0.01)]).status is RunStatus.UNSTABLE


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_loss_that_is_lost_is_reported_at_once(lost):
    diagnosis = diagnose(of_loss([3.0, 2.9, lost, lost]))
    assert diagnosis.status is RunStatus.UNSTABLE
    assert (diagnosis.findings[0].kind.value, diagnosis.findings[0].step) == ("loss_non_finite", 20)


@pytest.mark.parametrize("loss", [[3.0, np.nan, 2.9, 2.8], [3.0, 2.9, np.nan], [np.nan], []])
def test_single_loss_that_is_not_finite_says_nothing(loss):
    assert diagnose(of_loss(loss)).status is RunStatus.UNDETERMINED


def test_infinite_losses_are_a_fault_with_attention_too():
    loss = np.append(np.linspace(4, 3, 36), np.full(4, np.inf))
    diagnosis = diagnose(course(normalized_entropy=falling(0.9, 0.5), loss=loss))
    assert diagnosis.status is RunStatus.UNSTABLE
    assert (diagnosis.findings[0].kind.value, diagnosis.findings[0].step) == ("loss_non_finite", 360)
    once = np.append(np.linspace(4, 3, 39), np.inf)
    assert not diagnose(course(normalized_entropy=falling(0.9, 0.5), loss=once)).findings


@pytest.mark.parametrize("loss", [np.full(40, np.nan), np.linspace(1, 9, 40)], ids=["nan", "rises"])
def test_with_attention_the_loss_alone_decides_nothing(loss):
    """A loss that is nan was perhaps not recorded, and the risk has its own signals of the loss."""
    kinds = {
        finding.kind.value for finding in diagnose(course(normalized_entropy=falling(0.9, 0.5), loss=loss)).findings
    }
    assert not kinds & {"loss_non_finite", "loss_diverged"}
