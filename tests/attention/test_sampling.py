"""A sample of query rows: the right rows, seen as they are, unbiased, with an honest standard error."""

import pytest
import torch
from torch import Tensor

from attnwatch import attention_statistics
from attnwatch.attention import stratified_rows
from tests.support.oracle import assert_statistics_match, attention_matrix

SHAPES = [(7, 3), (64, 8), (100, 32), (10, 9), (10, 1)]
PADDING = torch.tensor([40, 25])[:, None] > torch.arange(40)
OPTIONS = {
    "full": {},
    "causal": {"is_causal": True},
    "causal with mask": {"is_causal": True, "attn_mask": torch.rand(40, 40) > 0.3},
    "float mask": {"attn_mask": torch.randn(2, 1, 40, 40)},
    "right padding": {"attn_mask": PADDING[:, None, None], "query_mask": PADDING},
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("num_queries", "num_rows"), SHAPES)
def test_one_row_per_stratum(num_queries: int, num_rows: int):
    for seed in range(50):
        rows = stratified_rows(num_queries, num_rows, generator(seed))
        assert rows.shape == (num_rows,)
        assert rows.min() >= 0
        assert rows.max() < num_queries
        assert (rows.diff() >= 0).all()
        strata = torch.arange(num_rows + 1) * num_queries / num_rows
        assert (rows > strata[:-1] - 1).all()  # a row on the border of two strata belongs to both
        assert (rows < strata[1:]).all()


@pytest.mark.parametrize(("num_queries", "num_rows"), SHAPES)
def test_every_row_is_as_likely(num_queries: int, num_rows: int):
    draws = 4000
    source = generator(0)
    rows = torch.cat([stratified_rows(num_queries, num_rows, source) for _ in range(draws)])
    share = num_rows / num_queries
    assert (rows.bincount(minlength=num_queries) / draws - share).abs().max() < 4.5 * (share / draws) ** 0.5


@pytest.mark.parametrize("num_rows", [None, 5, 6])
def test_all_rows(num_rows: int | None):
    assert stratified_rows(5, num_rows).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_query_rows", [1, 2, 9])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sampled_rows_see_what_they_see_in_the_whole_sequence(options: dict, num_query_rows: int):
    query, key = torch.randn(2, 4, 40, 8), torch.randn(2, 2, 40, 8)
    statistics = attention_statistics(
        query, key, **options, enable_gqa=True, num_query_rows=num_query_rows, generator=generator(3)
    )
    assert statistics.num_rows == num_query_rows
    rows = stratified_rows(40, num_query_rows, generator(3)).tolist()
    options = dict(options)
    query_mask = options.pop("query_mask", None)
    matrix = attention_matrix(query, key, **options, enable_gqa=True)
    assert_statistics_match(statistics, matrix, rows=rows, query_mask=query_mask)


def test_generator_leaves_the_global_one_alone():
    query, key = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 40, 8)
    state = torch.get_rng_state()
    attention_statistics(query, key, num_query_rows=4, generator=generator(0))
    assert torch.get_rng_state().equal(state)


def test_same_seed_same_rows():
    first, again, other = (stratified_rows(1000, 16, generator(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.fixture(scope="module", params=["causal", "causal, right padding", "smooth"])
def samples(request) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized entropy [heads] over all rows; then that of 300 samples and its standard error [samples, heads]."""
    torch.manual_seed(0)
    tokens = 256
    query, key = torch.randn(2, 4, tokens, 8), torch.randn(2, 4, tokens, 8)
    query_mask = None
    if request.param == "smooth":  # rows become sharper along the sequence
        query *= torch.linspace(0, 4, tokens)[:, None]
    if request.param == "causal, right padding":
        query_mask = torch.tensor([256, 100])[:, None] > torch.arange(tokens)
    options = {"is_causal": True, "query_mask": query_mask}
    expected = attention_statistics(query, key, **options).normalized_entropy
    source = generator(1)
    drawn = [attention_statistics(query, key, **options, num_query_rows=24, generator=source) for _ in range(300)]
    estimates = torch.stack([statistics.normalized_entropy for statistics in drawn])
    stderrs = torch.stack([statistics.normalized_entropy_stderr for statistics in drawn])
    return expected, estimates, stderrs


def test_sample_is_unbiased(samples: tuple[Tensor, Tensor, Tensor]):
    expected, estimates, _ = samples
    bias = estimates.mean(0) - expected
    assert (bias.abs() < 4 * estimates.std(0) / len(estimates) ** 0.5).all()


def test_standard_error_is_honest(samples: tuple[Tensor, Tensor, Tensor]):
    expected, estimates, stderrs = samples
    errors = estimates - expected
    assert (errors.abs() <= 2 * stderrs).float().mean() > 0.85
    root_mean_squares = stderrs.square().mean(0).sqrt(), errors.square().mean(0).sqrt()
    torch.testing.assert_close(*root_mean_squares, rtol=0.2, atol=0)
