"""Sums of calls, blocks of rows and processes add up to what one call would have given."""

import pytest
import torch
from torch import Tensor

from attnwatch import attention_entropy, attention_statistics
from attnwatch.attention import Accumulator, AttentionInputs
from attnwatch.attention.sampling import block_elements
from attnwatch.statistics import Statistic
from tests.support.oracle import assert_statistics_match, attention_matrix

ACCUMULATOR = Accumulator()

ROWS = torch.arange(12)
# Both compare what is in one call: sequences with each other, rows with their neighbours.
WITHIN_A_CALL = ("content_sensitivity", "normalized_entropy_stderr")


def sums_of(query: Tensor, key: Tensor, rows: Tensor = ROWS, **options) -> Tensor:
    return ACCUMULATOR.sums(AttentionInputs(query, key, is_causal=True, **options), rows)


def random_query_key(batch: int, tokens: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, tokens, 8), torch.randn(batch, 3, tokens, 8)


def assert_same_statistics(sums: Tensor, expected: Tensor, *, without: tuple[str, ...] = ()):
    pairs = zip(Statistic.registry, ACCUMULATOR.values(sums), ACCUMULATOR.values(expected), strict=True)
    for name, value, expected_value in pairs:
        if name not in without:
            torch.testing.assert_close(value, expected_value, equal_nan=True, msg=name)


@pytest.mark.parametrize("rows", [ROWS, ROWS[2::5]], ids=["all rows", "some rows"])
def test_merged_calls_equal_one_call_on_both_batches(rows: Tensor):
    query, key = random_query_key(batch=5)
    merged = ACCUMULATOR.merge(sums_of(query[:2], key[:2], rows), sums_of(query[2:], key[2:], rows))
    assert_same_statistics(merged, sums_of(query, key, rows), without=WITHIN_A_CALL)


def test_merge_with_a_call_where_no_row_counts_changes_nothing():
    query, key = random_query_key(batch=2)
    sums = sums_of(query, key)
    nothing = sums_of(query, key, query_mask=torch.zeros(2, 12, dtype=torch.bool))
    assert ACCUMULATOR.values(nothing).isnan().all()
    assert_same_statistics(ACCUMULATOR.merge(sums, nothing), sums)
    assert_same_statistics(ACCUMULATOR.merge(nothing, sums), sums)


def test_merge_weighs_by_rows():
    query, key = random_query_key(batch=2)
    first_call, second_call = ROWS[:9], ROWS[9:]
    merged = ACCUMULATOR.merge(sums_of(query, key, first_call), sums_of(query, key, second_call))
    assert_same_statistics(merged, sums_of(query, key), without=("normalized_entropy_stderr",))


def test_merged_standard_errors_add_in_squares():
    query, key = random_query_key(batch=2)
    sums = sums_of(query, key, ROWS[2::5])
    index = list(Statistic.registry).index("normalized_entropy_stderr")
    once, twice = ACCUMULATOR.values(sums)[index], ACCUMULATOR.values(ACCUMULATOR.merge(sums, sums))[index]
    torch.testing.assert_close(twice, once / 2**0.5)


@pytest.mark.parametrize("kind", ["causal", "float mask"])
def test_several_blocks_equal_the_oracle(kind: str):
    tokens = 1100
    assert tokens**2 > block_elements(torch.device("cpu"))
    query, key = torch.randn(1, 1, tokens, 8), torch.randn(1, 1, tokens, 8)
    options = {"is_causal": True} if kind == "causal" else {"attn_mask": torch.randn(tokens)}
    matrix = attention_matrix(query, key, **options)
    statistics = attention_statistics(query, key, **options)
    assert_statistics_match(statistics, matrix)
    counted = attention_entropy(query, key, **options)[:, :, int(kind == "causal") :]
    torch.testing.assert_close(counted.mean((0, 2)), statistics.entropy, rtol=0, atol=1e-5)
