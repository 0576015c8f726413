"""A row with a visible logit that is nan or infinite has no entropy and is counted as such, wherever that logit is."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnwatch import AttentionStatistics, attention_entropy, attention_statistics
from attnwatch.attention import Accumulator, AttentionInputs, attention_received, attention_weights
from attnwatch.statistics import Statistic
from tests.support.oracle import assert_entropy_matches, assert_statistics_match, attention_matrix

KEYS, HEAD_DIM = 4, 3
BAD = [torch.nan, torch.inf, -torch.inf]
PLACES = [places for size in (1, 2, 3, 4) for places in itertools.combinations(range(KEYS), size)]
MASKS = {
    "kernel": None,
    "blocks": torch.zeros(KEYS),
    "bool": torch.ones(KEYS, dtype=torch.bool),
    "first hidden": torch.arange(KEYS) > 0,
    "first hidden by -1e4": torch.tensor([-1e4, 0.0, 0.0, 0.0]),
    "first hidden by -inf": torch.tensor([-torch.inf, 0.0, 0.0, 0.0]),
    "last two hidden": torch.arange(KEYS) < 2,
    "one visible": torch.arange(KEYS) == 2,
    "one visible by float": torch.where(torch.arange(KEYS) == 2, 0.0, -torch.inf),
}


def with_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key of one row: the logits are the first feature of the keys, at scale 1."""
    key = torch.zeros(1, 1, len(logits), HEAD_DIM, dtype=logits.dtype)
    key[0, 0, :, 0] = logits
    return torch.ones(1, 1, 1, HEAD_DIM, dtype=logits.dtype), key


def statistics_of(inputs: AttentionInputs) -> AttentionStatistics:
    accumulator = Accumulator()
    values = accumulator.values(accumulator.sums(inputs, torch.arange(inputs.num_queries)))
    return AttentionStatistics(dict(zip(accumulator.names, values, strict=True)), inputs.num_queries)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", MASKS)
def test_wherever_it_is(name: str, value: float):
    for places, dtype in itertools.product(PLACES, (torch.float32, torch.float64)):
        logits = torch.randn(KEYS, dtype=dtype)
        logits[list(places)] = value
        query, key = with_logits(logits)
        options = {"attn_mask": MASKS[name], "scale": 1.0}
        matrix = attention_matrix(query, key, **options)
        assert_entropy_matches(attention_entropy(query, key, **options), matrix)
        assert_statistics_match(attention_statistics(query, key, **options), matrix, dtype=dtype)


def test_only_the_first_key_is_finite():
    query, key = with_logits(torch.tensor([1.0, -torch.inf, -torch.inf, -torch.inf]))
    assert attention_entropy(query, key).isnan().all()
    statistics = attention_statistics(query, key)
    assert statistics.nonfinite.item() == 1
    assert statistics.entropy.isnan().all()


@pytest.mark.parametrize("value", BAD)
def test_one_visible_key_whose_logit_is_not_finite(value: float):
    for mask in (None, torch.zeros(1), torch.ones(1, dtype=torch.bool)):
        query, key = with_logits(torch.tensor([value]))
        assert attention_entropy(query, key, attn_mask=mask).isnan().all()
    query, key = with_logits(torch.tensor([value, 1.0]))
    assert attention_entropy(query, key, is_causal=True).isnan().all()
    assert attention_statistics(query, key, is_causal=True).nonfinite.item() == 1


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_in_a_position_bias(places: tuple[int, ...], value: float):
    query, key = with_logits(torch.randn(KEYS))
    bias = torch.zeros(KEYS)
    bias[list(places)] = value
    matrix = attention_matrix(query, key, position_bias=bias)  # -inf hides
    assert_statistics_match(statistics_of(AttentionInputs(query, key, position_bias=bias)), matrix)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_beside_a_learned_sink(places: tuple[int, ...], value: float):
    logits = torch.randn(KEYS)
    logits[list(places)] = value
    query, key = with_logits(logits)
    statistics = statistics_of(AttentionInputs(query, key, learned_sink=torch.tensor([1.0])))
    assert statistics.nonfinite.item() == 1
    assert all(getattr(statistics, name).isnan().all() for name in Statistic.registry if name != "nonfinite")


def test_a_softcap_makes_infinite_products_finite():
    """What the model computes with is the capped logit."""
    query, key = with_logits(torch.tensor([1.0, -torch.inf, torch.inf, 2.0]))
    query[..., 1:], options = 0.0, {"softcap": 5.0, "scale": 1.0}
    key[..., 1:] = 0.0
    matrix = attention_matrix(query, key, **options)
    statistics = statistics_of(AttentionInputs(query, key, **options))
    assert statistics.nonfinite.item() == 0
    assert statistics.max_logit.item() == 5
    probabilities = torch.tensor([5 * math.tanh(0.2), -5.0, 5.0, 5 * math.tanh(0.4)], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(matrix.weights(0, 0, 0), probabilities)
    expected = -(probabilities * probabilities.log()).sum()
    assert statistics.entropy.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_a_softcap_of_zero_is_none(off: float | None):
    query, key = with_logits(torch.tensor([1.0, 3.0, 0.0, 2.0]))
    statistics = statistics_of(AttentionInputs(query, key, softcap=off, scale=1.0))
    assert_statistics_match(statistics, attention_matrix(query, key, scale=1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e3, 1e6, 1e12, 1e18, 1e21, -1e21])
def test_large_logits_are_finite(scale: float, dtype: torch.dtype):
    """Their squares are not, nor those of what the kernel subtracts."""
    query, key = torch.randn(2, 2, 6, 8, dtype=dtype), torch.randn(2, 2, 6, 8, dtype=dtype)
    for mask in (None, torch.randn(6)):
        options = {"attn_mask": mask, "scale": scale, "is_causal": True}
        matrix = attention_matrix(query, key, **options)
        entropy, statistics = attention_entropy(query, key, **options), attention_statistics(query, key, **options)
        assert_entropy_matches(entropy, matrix)
        assert_statistics_match(statistics, matrix, dtype=dtype)
        assert entropy.min() >= 0
        assert entropy.max() <= math.log(6) + 1e-6
        assert statistics.nonfinite.tolist() == [0, 0]
        std = torch.stack([matrix.visible_logits(0, h, 5).std(correction=0) for h in range(2)])
        last = attention_statistics(query[:1, :, 5:], key[:1], scale=scale, attn_mask=mask).logit_std
        torch.testing.assert_close(last.double(), std, rtol=1e-5, atol=0)


def test_products_that_overflow_are_not_finite():
    query, key = with_logits(torch.tensor([1.0, 1e30, -1e30, 2.0]))
    for factor in (1e20, -1e20):
        assert attention_entropy(factor * query, key).isnan().all()
        assert attention_statistics(factor * query, key).nonfinite.item() == 1
    key = torch.tensor([1e30, -1e30, -1e30, -1e30]).view(1, 1, 4, 1)  # only to the negative side, but for the first
    assert attention_entropy(torch.full((1, 1, 1, 1), 1e20), key).isnan().all()


@settings(max_examples=60)
@given(st.data())
def test_drawn_places(data: st.DataObject):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    query, key = torch.randn(2, 2, 3, 4, generator=generator), torch.randn(2, 2, 6, 4, generator=generator)
    for tensor in data.draw(st.sampled_from([(query,), (key,), (query, key)])):
        for _ in range(data.draw(st.integers(1, 12))):
            place = int(torch.randint(tensor.numel(), (), generator=generator))
            tensor.view(-1)[place] = data.draw(st.sampled_from([*BAD, 1e38, -1e38]))
    mask = torch.rand(2, 1, 3, 6, generator=generator) < 0.6
    mask = data.draw(st.sampled_from([None, mask, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)]))
    options = {"attn_mask": mask, "is_causal": data.draw(st.booleans()), "scale": 1.0}
    matrix = attention_matrix(query, key, **options)
    matrix.logits[matrix.logits.abs() > 1e30] = torch.nan
    magnitude = matrix.logits[matrix.logits.isfinite() & matrix.visible].abs()
    matrix = type(matrix)(matrix.logits, matrix.visible, 20 * magnitude.max().item() if len(magnitude) else 0.0)
    assert_entropy_matches(attention_entropy(query, key, **options), matrix)
    assert_statistics_match(attention_statistics(query, key, **options), matrix)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("bad", range(KEYS))
def test_weights_are_nan_and_what_keys_receive_is_of_the_other_rows(bad: int, value: float):
    query, key = torch.randn(1, 2, KEYS, HEAD_DIM), torch.randn(1, 2, KEYS, HEAD_DIM)
    before = AttentionInputs(query, key.clone(), is_causal=True, query_mask=torch.arange(KEYS)[None] < bad)
    key[:, :, bad] = value
    inputs = AttentionInputs(query, key, is_causal=True)
    weights, _ = attention_weights(inputs, torch.arange(KEYS))
    assert weights[:, :, :bad].isfinite().all()
    assert weights[:, :, bad:].isnan().all()
    received = attention_received(inputs, None, None)
    torch.testing.assert_close(received[:, :bad], attention_received(before, None, None)[:, :bad])
    assert received[:, bad:].isnan().all()


@pytest.mark.parametrize("num_rows", [2, None])
def test_autocast_does_not_change_what_keys_receive(num_rows: int | None):
    inputs = AttentionInputs(torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), is_causal=True)
    expected = attention_received(inputs, num_rows, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_received(inputs, num_rows, torch.Generator().manual_seed(0)).equal(expected)
