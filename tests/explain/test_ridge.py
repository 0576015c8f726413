"""Ridge classifiers against literal float64 solves and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from sklearn.linear_model import RidgeClassifier, RidgeCV
from torch import Tensor
from torch.nn.functional import one_hot

from attnwatch.explain.probing.ridge import STRENGTHS, Ridge, full_precision


def problem(examples: int, features: int, classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States of different sizes and far from zero, and labels that they say something of; every class is there."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    states = states * torch.logspace(-1, 1, features, dtype=torch.float64) + 3
    labels = torch.arange(examples) % classes
    states[:, 0] += labels
    return states, labels


def standardized(states: Tensor) -> Tensor:
    return (states - states.mean(0)) / states.std(0, correction=0)


def literal_weights(states: Tensor, targets: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Normal equations with an intercept that is not penalized."""
    x = torch.cat([states, torch.ones(len(states), 1, dtype=states.dtype)], 1)
    penalty = torch.eye(x.shape[1], dtype=x.dtype) * len(states) * strength
    penalty[-1, -1] = 0
    solved = torch.linalg.solve(x.T @ x + penalty, x.T @ targets)
    return solved[:-1], solved[-1]


def literal_squared_error(states: Tensor, targets: Tensor, strength: float) -> float:
    """Every example left out in turn. The penalty stays that of all examples."""
    total = 0.0
    for out in range(len(states)):
        kept = torch.arange(len(states)) != out
        relative = strength * len(states) / (len(states) - 1)
        weight, bias = literal_weights(states[kept], targets[kept], relative)
        total += float((targets[out] - states[out] @ weight - bias).square().sum())
    return total


SHAPES = {"tall": (40, 5, 3), "wide": (12, 30, 3), "square": (10, 10, 2), "more classes than features": (30, 4, 9)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_weights_and_strength_are_those_of_literal_solves(shape):
    states, labels = problem(*shape)
    (probe,) = Ridge(states).fit([labels], [shape[2]])
    targets = one_hot(labels).double()
    errors = [literal_squared_error(standardized(states), targets, strength) for strength in STRENGTHS]
    assert probe.strength == STRENGTHS[int(np.argmin(errors))]
    weight, bias = literal_weights(standardized(states), targets, probe.strength)
    torch.testing.assert_close(probe.weight, weight, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(probe.bias, bias, rtol=1e-8, atol=1e-10)


@given(
    examples=strategies.integers(6, 40),
    features=strategies.integers(1, 45),
    classes=strategies.integers(2, 5),
    seed=strategies.integers(0, 9),
)
def test_leave_one_out_is_that_of_scikit_learn(examples, features, classes, seed):
    states, labels = problem(examples, features, classes, seed=seed)
    (probe,) = Ridge(states).fit([labels], [classes])
    targets = one_hot(labels, classes).double().numpy()
    oracle = RidgeCV(alphas=examples * np.array(STRENGTHS), store_cv_results=True).fit(standardized(states), targets)
    errors = oracle.cv_results_.sum((0, 1))
    chosen = errors[STRENGTHS.index(probe.strength)]
    assert chosen <= errors.min() * (1 + 1e-9)
    if np.sort(errors)[1] > errors.min() * (1 + 1e-9):
        np.testing.assert_allclose(probe.weight.numpy(), oracle.coef_.T, rtol=1e-6, atol=1e-8)


def test_classifies_as_ridge_classifier():
    states, labels = problem(60, 8, 4)
    ridge = Ridge(states[:40])
    (probe,) = ridge.fit([labels[:40]], [4])
    said = (ridge.standardize(states[40:]) @ probe.weight + probe.bias).argmax(1)
    oracle = RidgeClassifier(alpha=40 * probe.strength).fit(ridge.standardize(states[:40]), labels[:40])
    assert said.tolist() == oracle.predict(ridge.standardize(states[40:])).tolist()


def test_labels_share_a_decomposition_and_nothing_else():
    states, labels = problem(50, 6, 3)
    other = torch.randint(5, (50,))
    ridge = Ridge(states)
    together = ridge.fit([labels, other], [3, 5])
    alone = [*ridge.fit([labels], [3]), *ridge.fit([other], [5])]
    assert together[0].strength != together[1].strength
    for first, second in zip(together, alone, strict=True):
        assert first.strength == second.strength
        torch.testing.assert_close(first.weight, second.weight)


@pytest.mark.parametrize("shape", [(400, 60, 6), (80, 200, 3)], ids=["tall", "wide"])
def test_float32_is_near_float64(shape):
    """Also with one direction that outweighs all others, as hidden states have them."""
    states, labels = problem(*shape)
    states += 50 * torch.randn(shape[0], 1, dtype=torch.float64)
    (exact,) = Ridge(states).fit([labels], [shape[2]])
    (rough,) = Ridge(states.float()).fit([labels], [shape[2]])
    assert rough.strength == exact.strength
    torch.testing.assert_close(rough.weight.double(), exact.weight, rtol=1e-3, atol=1e-3 * float(exact.weight.max()))


def test_constant_features_vanish():
    states, labels = problem(30, 5, 3)
    constant = torch.full((30, 2), 7.3, dtype=torch.float64)
    (probe,) = Ridge(torch.cat([constant, states], 1)).fit([labels], [3])
    assert (probe.weight[:2] == 0).all()
    torch.testing.assert_close(probe.weight[2:], Ridge(states).fit([labels], [3])[0].weight)


def test_strength_may_be_chosen_on_some_examples():
    states, labels = problem(60, 20, 3)
    some = torch.arange(0, 60, 4)
    targets = one_hot(labels).double() - one_hot(labels).double().mean(0)
    ridge = Ridge(states, some)
    products = ridge._vectors.T @ (standardized(states).T @ targets)
    oracle = RidgeCV(alphas=60 * np.array(STRENGTHS), store_cv_results=True).fit(standardized(states), targets)
    for index, strength in enumerate(STRENGTHS):
        expected = oracle.cv_results_[some, :, index].sum(0)
        np.testing.assert_allclose(ridge._squared_errors(products, targets, strength), expected, rtol=1e-7)


def test_precision_of_products_is_put_back():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
