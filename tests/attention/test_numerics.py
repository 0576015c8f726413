"""Extreme and degenerate inputs: large logits, rows with one key or none, nan and inf."""

import math

import pytest
import torch
from torch import Tensor

from attnwatch import attention_entropy, attention_statistics
from attnwatch.statistics import Statistic
from tests.support.oracle import assert_entropy_matches, assert_statistics_match, attention_matrix, oracle_entropy

HIDE_ALL = {
    "bool": torch.zeros(1, dtype=torch.bool),
    "minus infinity": torch.full((1,), -torch.inf),
    "dtype minimum": torch.full((1,), torch.finfo(torch.float32).min),
}


def random_query_key(batch: int = 2, tokens: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 2, tokens, 8), torch.randn(batch, 2, tokens, 8)


def test_uniform_attention():
    statistics = attention_statistics(torch.zeros(2, 1, 5, 8), torch.randn(2, 1, 5, 8))
    expected = {
        "entropy": math.log(5),
        "normalized_entropy": 1,
        "normalized_entropy_stderr": 0,
        "max_entropy": math.log(5),
        "max_logit": 0,
        "logit_std": 0,
        "sink_mass": 1 / 5,
        "max_weight": 1 / 5,
        "entropy_without_sink": math.log(4),
        "distance": 8 / 5,
        "content_sensitivity": 0,
        "nonfinite": 0,
    }
    for name, value in expected.items():
        assert getattr(statistics, name).item() == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_logits_of_ten_thousand(scale: float):
    query, key = random_query_key()
    query *= 1e4 / (query @ key.mT).abs().amax()
    options = {"scale": scale, "is_causal": True}
    matrix = attention_matrix(query, key, **options)
    assert matrix.magnitude > 9e3
    assert_entropy_matches(attention_entropy(query, key, **options), matrix)
    assert_statistics_match(attention_statistics(query, key, **options), matrix)


def test_weight_on_one_key_leaves_the_rest_exact():
    """The weight of all other keys, exp(-80), is below the resolution of 1 - p in every dtype."""
    query, key = random_query_key()
    query[..., 0], key[..., 0], key[:, :, 0, 0] = 1.0, 0.0, 80.0
    statistics = attention_statistics(query, key, scale=1.0)
    assert statistics.sink_mass.tolist() == [1.0, 1.0]
    without_first = attention_statistics(query, key[:, :, 1:], scale=1.0)
    torch.testing.assert_close(statistics.entropy_without_sink, without_first.entropy)


def test_common_part_of_the_keys_costs_no_precision():
    query, key = random_query_key(tokens=64)
    key += 1000
    expected = oracle_entropy(attention_matrix(query, key))
    torch.testing.assert_close(attention_entropy(query, key).double(), expected, rtol=0, atol=1e-5)


def test_row_with_one_key_has_no_entropy_and_does_not_count():
    query, key = random_query_key()
    entropy = attention_entropy(query, key, is_causal=True)
    torch.testing.assert_close(entropy[:, :, 0], torch.zeros(2, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        attention_statistics(query, key, is_causal=True).entropy, entropy[:, :, 1:].mean((0, 2)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("mask", HIDE_ALL.values(), ids=HIDE_ALL)
def test_row_without_keys_is_nan(mask: Tensor):
    query, key = random_query_key()
    mask = torch.cat([mask, torch.ones(7).to(mask.dtype)])[:, None]  # row 0 sees nothing
    entropy = attention_entropy(query, key, attn_mask=mask)
    assert entropy[:, :, 0].isnan().all()
    assert entropy[:, :, 1:].isfinite().all()
    assert_statistics_match(
        attention_statistics(query, key, attn_mask=mask), attention_matrix(query, key, attn_mask=mask)
    )


@pytest.mark.parametrize("mask", HIDE_ALL.values(), ids=HIDE_ALL)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_nothing_visible_is_nan_not_zero(mask: Tensor, is_causal: bool):
    query, key = random_query_key()
    assert attention_entropy(query, key, attn_mask=mask, is_causal=is_causal).isnan().all()
    statistics = attention_statistics(query, key, attn_mask=mask, is_causal=is_causal)
    assert all(getattr(statistics, name).isnan().all() for name in Statistic.registry)


@pytest.mark.parametrize("num_query_rows", [None, 1], ids=["all rows", "one row"])
def test_one_token(num_query_rows: int | None):
    query, key = random_query_key(tokens=1)
    assert attention_entropy(query, key).abs().max() < 1e-5
    statistics = attention_statistics(query, key, num_query_rows=num_query_rows)
    assert statistics.num_rows == 1
    assert all(getattr(statistics, name).isnan().all() for name in Statistic.registry)


def test_content_sensitivity_needs_two_sequences():
    query, key = random_query_key(batch=1)
    assert attention_statistics(query, key).content_sensitivity.isnan().all()
    repeated = attention_statistics(query.repeat(3, 1, 1, 1), key.repeat(3, 1, 1, 1))
    assert repeated.content_sensitivity.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_content_sensitivity_of_disjoint_patterns_is_log_batch():
    tokens = 4
    key = 100 * torch.eye(tokens).expand(tokens, 1, tokens, tokens)
    query = torch.eye(tokens)[:, None, None].expand(tokens, 1, tokens, tokens)  # sequence b attends to key b
    statistics = attention_statistics(query, key)
    assert statistics.content_sensitivity.item() == pytest.approx(math.log(tokens), abs=1e-5)


def test_max_logit_may_be_negative():
    query, key = random_query_key()
    query, key = query.abs(), -key.abs()
    statistics = attention_statistics(query, key, is_causal=True)
    assert (statistics.max_logit < 0).all()
    assert_statistics_match(statistics, attention_matrix(query, key, is_causal=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("where", "token", "num_rows"),
    [("query", 3, 1), ("key", 3, 5), ("key", 0, 7)],  # row 0 does not count
    ids=["query", "key", "first key"],
)
def test_nonfinite_rows_are_counted_and_left_out(where: str, token: int, num_rows: int, is_causal: bool, value: float):
    query, key = random_query_key()
    tensor = {"query": query, "key": key}[where]
    tensor[:, :, token, 0] = value
    matrix = attention_matrix(query, key, is_causal=is_causal)
    assert_entropy_matches(attention_entropy(query, key, is_causal=is_causal), matrix)
    statistics = attention_statistics(query, key, is_causal=is_causal)
    assert_statistics_match(statistics, matrix)
    if is_causal:
        assert statistics.nonfinite.tolist() == pytest.approx([num_rows / 7] * 2)


def test_all_nan_is_reported_as_such():
    query, key = random_query_key()
    statistics = attention_statistics(query * torch.nan, key)
    assert statistics.nonfinite.tolist() == [1, 1]
    assert statistics.normalized_entropy.isnan().all()


def test_nan_in_a_float_mask_is_not_hidden():
    query, key = random_query_key()
    mask = torch.zeros(8, 8)
    mask[2, 5] = torch.nan
    assert attention_entropy(query, key, attn_mask=mask)[:, :, 2].isnan().all()
    assert attention_statistics(query, key, attn_mask=mask).nonfinite.tolist() == [1 / 8, 1 / 8]


def test_results_need_no_gradient():
    query, key = (tensor.requires_grad_() for tensor in random_query_key())
    statistics = attention_statistics(query, key)
    assert not attention_entropy(query, key).requires_grad
    assert not any(getattr(statistics, name).requires_grad for name in Statistic.registry)


@pytest.mark.parametrize("mask", [None, torch.ones(8, 8)], ids=["kernel", "blocks"])
def test_autocast_changes_nothing(mask: Tensor | None):
    query, key = random_query_key()
    entropy, statistics = (
        attention_entropy(query, key, attn_mask=mask),
        attention_statistics(query, key, attn_mask=mask),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_entropy(query, key, attn_mask=mask).equal(entropy)
        again = attention_statistics(query, key, attn_mask=mask)
    assert all(getattr(again, name).equal(getattr(statistics, name)) for name in Statistic.registry)
