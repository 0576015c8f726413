"""Entropy and statistics of drawn shapes and masks equal the float64 oracle."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnwatch import attention_entropy, attention_statistics
from attnwatch.statistics import Statistic
from tests.support.oracle import assert_entropy_matches, assert_statistics_match, attention_matrix, oracle_statistics
from tests.support.paths import ROOT

HIDDEN = [-torch.inf, -1e4, -1e9, torch.finfo(torch.float32).min]


@dataclass
class Case:
    query: torch.Tensor
    key: torch.Tensor
    query_mask: torch.Tensor
    options: dict[str, Any]


@st.composite
def cases(draw, dtype: torch.dtype = torch.float32) -> Case:
    batch, key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    queries, keys, head_dim = draw(st.integers(1, 9)), draw(st.integers(1, 12)), draw(st.sampled_from([1, 4, 8]))
    heads = key_heads * group
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    mask_shapes = [(queries, keys), (batch, 1, 1, keys), (batch, 1, queries, keys), (batch, heads, queries, keys)]
    mask_shape = draw(st.sampled_from(mask_shapes))
    allowed = torch.rand(mask_shape, generator=generator) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    hidden = torch.full(mask_shape, draw(st.sampled_from(HIDDEN)), dtype=dtype)
    masks = {"none": None, "bool": allowed, "float": torch.where(allowed, normal(*mask_shape), hidden)}
    options = {
        "attn_mask": masks[draw(st.sampled_from(sorted(masks)))],
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, -1.0, 0.0, 0.1, 1.0, 4.0])),
        "enable_gqa": group > 1,
    }
    query_mask = torch.rand(batch, queries, generator=generator) < 0.6
    query, key = normal(batch, heads, queries, head_dim), normal(batch, key_heads, keys, head_dim)
    return Case(query, key, query_mask, options)


def test_every_statistic_has_an_oracle_here_or_in_a_file_of_its_own():
    matrix = attention_matrix(torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 4))
    of_files = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    known = oracle_statistics(matrix).keys()
    assert known <= Statistic.registry.keys() <= known | of_files


@given(cases())
def test_entropy(case: Case):
    entropy = attention_entropy(case.query, case.key, **case.options)
    assert entropy.dtype == torch.float32
    assert_entropy_matches(entropy, attention_matrix(case.query, case.key, **case.options))


@given(cases(torch.float64))
def test_entropy_of_float64(case: Case):
    entropy = attention_entropy(case.query, case.key, **case.options)
    assert entropy.dtype == torch.float64
    assert_entropy_matches(entropy, attention_matrix(case.query, case.key, **case.options))


@given(cases())
def test_statistics(case: Case):
    statistics = attention_statistics(case.query, case.key, **case.options)
    assert statistics.num_rows == case.query.shape[2]
    assert_statistics_match(statistics, attention_matrix(case.query, case.key, **case.options))


@pytest.mark.slow
@given(cases(torch.float64))
def test_statistics_of_float64(case: Case):
    statistics = attention_statistics(case.query, case.key, **case.options)
    matrix = attention_matrix(case.query, case.key, **case.options)
    assert_statistics_match(statistics, matrix, dtype=torch.float64)


@given(cases())
def test_statistics_of_counting_queries(case: Case):
    statistics = attention_statistics(case.query, case.key, **case.options, query_mask=case.query_mask)
    matrix = attention_matrix(case.query, case.key, **case.options)
    assert_statistics_match(statistics, matrix, query_mask=case.query_mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mask_dtype", [None, torch.bool, torch.float32, "same"], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, mask_dtype):
    query, key = torch.randn(2, 4, 9, 8, dtype=dtype), torch.randn(2, 2, 12, 8, dtype=dtype)
    options = {"is_causal": True, "enable_gqa": True}
    if mask_dtype is not None:
        options["attn_mask"] = torch.ones(9, 12).tril(-1).to(dtype if mask_dtype == "same" else mask_dtype)
    matrix = attention_matrix(query, key, **options)
    entropy = attention_entropy(query, key, **options)
    assert entropy.dtype == torch.float32
    assert_entropy_matches(entropy, matrix)
    assert_statistics_match(attention_statistics(query, key, **options), matrix)
