"""Assertions that two trainings came to the same."""

import numpy as np
import torch
from torch import nn

from attnwatch import PruningPlan
from attnwatch.layers import LayerStatistic
from attnwatch.statistics import Statistic


def assert_equal_models(model: nn.Module, expected: nn.Module) -> None:
    assert_same_weights(model, expected)
    assert PruningPlan.of(model) == PruningPlan.of(expected)


def assert_same_history(first, second):
    np.testing.assert_array_equal(first.steps, second.steps)
    np.testing.assert_array_equal(first.loss, second.loss)
    for name in (*Statistic.registry, *LayerStatistic.registry):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
