"""Query rows of a recorder: drawn once, so that curves move only when attention or the batch does."""

import numpy as np
import torch

from attnwatch.attention import AttentionInputs
from attnwatch.recorder import AttentionRecorder
from attnwatch.recorder.rows import QueryRows
from attnwatch.statistics import Statistic
from tests.support.models import gpt, token_ids


def rows_of(seed: int, queries: int, number: int = 4) -> list[int]:
    tensor = torch.zeros(1, 1, queries, 8)
    return QueryRows(seed, number).of(AttentionInputs(tensor, tensor)).tolist()


def test_curves_of_a_frozen_model_stay_where_they_are():
    model, ids = gpt(), token_ids(seed=0)
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=2) as recorder, torch.no_grad():
        for step in range(5):
            with recorder.step(step):
                model(ids)
        history = recorder.history()
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name], np.repeat(history[name][:1], 5, axis=0), name)


def test_rows_depend_on_the_seed_and_lie_at_the_same_shares_of_every_length():
    assert rows_of(0, 400) == rows_of(0, 400)
    assert rows_of(0, 400) != rows_of(1, 400)
    assert [row // 10 for row in rows_of(0, 4000)] == rows_of(0, 400)
    assert rows_of(2**64 - 1, 400)  # whatever NumPy takes for a seed, too
