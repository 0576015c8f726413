"""Calibration against hand-computed cases, literal definitions and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from attnwatch import ConfigurationError
from attnwatch.explain import calibration


def literal_error(confidence, right, num_bins):
    """Guo et al. 2017, equation 3, bin by bin."""
    error = 0.0
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = [(c, r) for c, r in zip(confidence, right, strict=True) if low < c <= high or (b == 0 and c == 0)]
        if inside:
            gap = np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside])
            error += len(inside) / len(right) * abs(gap)
    return error


def drawn(num_examples=300, classes=5, seed=0):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.4), num_examples)
    labels = np.array([random.choice(classes, p=np.roll(row, random.integers(2))) for row in probabilities])
    return probabilities, labels


def test_by_hand():
    found = calibration([[0.8, 0.2], [0.6, 0.4], [0.45, 0.55], [0.3, 0.7]], [0, 1, 1, 1], num_bins=4)
    # Confidences 0.8, 0.6, 0.55, 0.7; right but for the second. Bins (0.5, 0.75] with three, (0.75, 1] with one.
    assert found.bin_count.tolist() == [0, 0, 3, 1]
    assert found.bin_confidence.tolist()[2:] == pytest.approx([(0.6 + 0.55 + 0.7) / 3, 0.8])
    assert found.bin_accuracy.tolist()[2:] == pytest.approx([2 / 3, 1])
    assert found.bin_confidence[:2].isnan().all()
    assert found.bin_accuracy[:2].isnan().all()
    assert found.expected_calibration_error == pytest.approx(abs(2 - 1.85) / 4 + 0.2 / 4)
    assert found.brier == pytest.approx(2 * (0.2**2 + 0.6**2 + 0.45**2 + 0.3**2) / 4)
    assert (found.accuracy, found.num_examples) == (0.75, 4)
    assert found.accuracy_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found.auroc == pytest.approx(2 / 3)  # 0.8 and 0.7 are above 0.6, 0.55 is not
    assert "AUROC of the confidence: 0.667" in str(found)


def test_limits_belong_to_the_lower_bin():
    confidences = np.arange(11) / 10
    found = calibration(confidences, np.ones(11), num_bins=10)
    assert found.bin_count.tolist() == [2] + [1] * 9
    assert found.bin_upper.tolist() == (np.arange(1, 11) / 10).tolist()


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_literal_definitions(num_bins):
    probabilities, labels = drawn()
    found = calibration(torch.tensor(probabilities), torch.tensor(labels), num_bins=num_bins)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    assert found.expected_calibration_error == pytest.approx(literal_error(confidence, right, num_bins), abs=1e-12)
    assert found.accuracy == right.mean()
    assert found.auroc == pytest.approx(roc_auc_score(right, confidence))
    terms = [sum((row[k] - (k == y)) ** 2 for k in range(5)) for row, y in zip(probabilities, labels, strict=True)]
    assert found.brier == pytest.approx(np.mean(terms))
    assert found.brier_stderr == pytest.approx(np.std(terms, ddof=1) / math.sqrt(300))


def test_confidences_against_scikit_learn():
    random = np.random.default_rng(1)
    confidence = random.integers(0, 6, 200) / 5  # with many ties
    right = random.random(200) < confidence**2
    found = calibration(confidence, right)
    assert found.brier == pytest.approx(brier_score_loss(right, confidence))
    assert found.auroc == pytest.approx(roc_auc_score(right, confidence))


def test_model_that_is_calibrated_by_construction():
    random = np.random.default_rng(2)
    probabilities = random.dirichlet(np.ones(4), 20_000)
    labels = (random.random((20_000, 1)) > probabilities.cumsum(1)).sum(1)
    found = calibration(probabilities, labels)
    assert found.expected_calibration_error < 0.02
    noise = found.expected_calibration_error_stderr
    assert abs(found.expected_calibration_error - found.expected_if_calibrated) < 4 * noise
    assert found.mean_confidence == pytest.approx(found.accuracy, abs=4 * found.accuracy_stderr)
    few = calibration(probabilities[:40], labels[:40])
    assert few.expected_if_calibrated > 0.05  # what chance alone makes of 40 examples
    assert few.expected_calibration_error < 3 * few.expected_if_calibrated


@pytest.mark.parametrize("bins", ["equal_width", "equal_mass"])
def test_over_confident_model(bins):
    right = np.arange(1000) < 600
    found = calibration(np.full(1000, 0.9), right, bins=bins)
    assert found.expected_calibration_error == pytest.approx(0.3)
    assert found.expected_calibration_error > 10 * found.expected_if_calibrated
    assert found.auroc == 0.5


@pytest.mark.slow
def test_standard_errors_are_those_of_repeated_samples():
    random = np.random.default_rng(3)
    samples = []
    for _ in range(200):
        confidence = random.uniform(0.5, 1, 400)
        samples.append(calibration(confidence, random.random(400) < confidence - 0.2, num_bins=5))
    for name in ("accuracy", "expected_calibration_error", "brier", "auroc"):
        spread = np.std([getattr(sample, name) for sample in samples], ddof=1)
        claimed = np.mean([getattr(sample, f"{name}_stderr") for sample in samples])
        assert claimed == pytest.approx(spread, rel=0.25), name


def test_bins_of_equal_mass():
    confidence = np.random.default_rng(4).random(100) ** 4
    found = calibration(confidence, np.ones(100), num_bins=10, bins="equal_mass")
    assert found.bin_count.tolist() == [10] * 10
    tied = calibration([0.2] * 6 + [0.9] * 2, np.ones(8), num_bins=4, bins="equal_mass")
    assert tied.bin_count.tolist() == [6, 2]  # equal confidences are together
    assert tied.bin_upper.tolist() == [0.2, 1.0]


@pytest.mark.parametrize(("right", "reason"), [(1, "all answers are right"), (0, "all answers are wrong")])
def test_no_auroc_without_right_and_wrong(right, reason):
    found = calibration([0.3, 0.8], [right, right])
    assert math.isnan(found.auroc)
    assert math.isnan(found.auroc_stderr)
    assert found.auroc_reason == reason
    assert reason in str(found)


CASES = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


@pytest.mark.slow
@given(CASES, st.integers(1, 20), st.sampled_from(["equal_width", "equal_mass"]), st.randoms())
def test_bounds_and_order(cases, num_bins, bins, random):
    confidence, right = zip(*cases, strict=True)
    found = calibration(confidence, right, num_bins=num_bins, bins=bins)
    assert 0 <= found.expected_calibration_error <= 1
    assert 0 <= found.brier <= 1
    assert found.bin_count.sum() == len(cases)
    assert math.isnan(found.auroc) or 0 <= found.auroc <= 1
    if bins == "equal_width":
        assert found.expected_calibration_error == pytest.approx(literal_error(confidence, right, num_bins), abs=1e-9)
    random.shuffle(cases)
    confidence, right = zip(*cases, strict=True)
    assert str(calibration(confidence, right, num_bins=num_bins, bins=bins)) == str(found)


@pytest.mark.slow
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_brier_of_classes(classes, seed):
    random = np.random.default_rng(seed)
    probabilities, labels = random.dirichlet(np.full(classes, 0.2), 10), random.integers(classes, size=10)
    found = calibration(probabilities, labels)
    assert 0 <= found.brier <= 2
    order = random.permutation(10)
    assert calibration(probabilities[order], labels[order]).brier == found.brier


@pytest.mark.parametrize(
    ("probabilities", "outcomes", "options", "message"),
    [
        ([0.5], [1], {"num_bins": 0}, "`num_bins` must be an integer of at least 1"),
        ([0.5], [1], {"bins": "best"}, "`bins` must be one of 'equal_width', 'equal_mass', got 'best'"),
        ([0.5], [1], {"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        ([], [], {}, "at least one; got the shape"),
        ([[[0.5]]], [1], {}, "`probabilities` must be .examples, classes."),
        ([0.5, 0.5], [1], {}, "`outcomes` must be .examples., 2"),
        ([1.5], [1], {}, "between 0 and 1; they range from 1.5 to 1.5"),
        ([[2.0, -1.0]], [1], {}, "Apply the softmax to logits first"),
        ([[0.5, 0.1]], [1], {}, "each row must sum to 1; the sums range from 0.6"),
        ([[0.5, 0.5]], [2], {}, "integers from 0 to 1 for 2 classes; got 2 to 2"),
        ([[0.5, 0.5]], [0.5], {}, "integers from 0 to 1"),
        ([0.5], [3], {}, "`outcomes` must say for each confidence whether the prediction was right"),
        ([math.nan], [1], {}, "`probabilities` must be finite; 1 are not"),
        (["high"], [1], {}, "`probabilities` must be a tensor or an array of numbers"),
    ],
)
def test_wrong_arguments_are_named(probabilities, outcomes, options, message):
    with pytest.raises(ConfigurationError, match=message):
        calibration(probabilities, outcomes, **options)
