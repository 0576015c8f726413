"""What models add to attention beyond a mask: caps, biases, windows, packing."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attnwatch import AttentionStatistics
from attnwatch.attention import Accumulator, AttentionInputs, attention_received, attention_weights
from attnwatch.statistics import Statistic
from tests.support.oracle import assert_statistics_match, attention_matrix

BATCH, HEADS, TOKENS, HEAD_DIM = 2, 2, 9, 8
POSITIONS = torch.arange(TOKENS)
REAL = torch.tensor([9, 5])[:, None] > POSITIONS
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 5, 5, 5]])
BACK = POSITIONS[:, None] - POSITIONS  # how far each key lies behind a query

# Feature, and the mask that it means.
MASKING = {
    "sliding window": ({"sliding_window": 3}, BACK.abs() < 3),
    "causal sliding window": ({"sliding_window": 3, "is_causal": True}, (BACK >= 0) & (BACK < 3)),
    "sliding window of one": ({"sliding_window": 1}, BACK == 0),
    "key padding": ({"key_padding": REAL}, REAL[:, None, None]),
    "segments": ({"segments": DOCUMENTS}, (DOCUMENTS[:, :, None] == DOCUMENTS[:, None])[:, None]),
    "all together": (
        {"key_padding": REAL, "segments": DOCUMENTS, "is_causal": True, "attn_mask": BACK != 1},
        REAL[:, None, None] & (DOCUMENTS[:, :, None] == DOCUMENTS[:, None])[:, None] & (BACK >= 0) & (BACK != 1),
    ),
}
MASK_MODS: dict[str, Callable] = {
    "causal": lambda b, h, q, k: q >= k,
    "prefix": lambda b, h, q, k: (q >= k) | (k < 4),
    "documents": lambda b, h, q, k: DOCUMENTS[b, q] == DOCUMENTS[b, k],
    "padding": lambda b, h, q, k: REAL[b, k],
    "by head": lambda b, h, q, k: q - k <= h + 1,
    "every other key": lambda b, h, q, k: k % 2 == 0,
    "every other query": lambda b, h, q, k: q % 2 == 0,
}


def statistics_of(inputs: AttentionInputs, rows: Tensor = POSITIONS) -> AttentionStatistics:
    accumulator = Accumulator()
    values = accumulator.values(accumulator.sums(inputs, rows))
    return AttentionStatistics(dict(zip(accumulator.names, values, strict=True)), len(rows))


def random_query_key() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM), torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM)


@pytest.mark.parametrize("name", MASKING)
def test_feature_equals_its_mask(name: str):
    feature, mask = MASKING[name]
    query, key = random_query_key()
    statistics = statistics_of(AttentionInputs(query, key, **feature))
    assert_statistics_match(statistics, attention_matrix(query, key, attn_mask=mask))


@pytest.mark.parametrize("name", MASK_MODS)
def test_mask_mod_equals_its_mask(name: str):
    mask_mod = MASK_MODS[name]
    query, key = random_query_key()
    dense = torch.empty(BATCH, HEADS, TOKENS, TOKENS, dtype=torch.bool)
    for index in itertools.product(*map(range, dense.shape)):
        dense[index] = mask_mod(*index)
    statistics = statistics_of(AttentionInputs(query, key, mask_mod=mask_mod))
    assert_statistics_match(statistics, attention_matrix(query, key, attn_mask=dense))


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_softcap(softcap: float):
    query, key = random_query_key()
    options = {"softcap": softcap, "is_causal": True, "scale": 2.0}
    statistics = statistics_of(AttentionInputs(query, key, **options))
    assert statistics.max_logit.max() <= softcap
    assert_statistics_match(statistics, attention_matrix(query, key, **options))


@pytest.mark.parametrize("shape", [(1, HEADS, TOKENS, TOKENS), (BATCH, 1, 1, TOKENS), (TOKENS, TOKENS)])
def test_position_bias(shape: tuple[int, ...]):
    query, key = random_query_key()
    bias = torch.randn(shape)
    bias[..., 2] = -1e9
    options = {"position_bias": bias, "attn_mask": BACK >= 0}
    statistics = statistics_of(AttentionInputs(query, key, **options))
    assert_statistics_match(statistics, attention_matrix(query, key, **options))


def test_bias_is_not_capped():
    query, key = random_query_key()
    options = {"softcap": 1.0, "position_bias": torch.full((TOKENS, TOKENS), 7.0)}
    statistics = statistics_of(AttentionInputs(query, key, **options))
    assert (statistics.max_logit > 6).all()
    assert_statistics_match(statistics, attention_matrix(query, key, **options))


@pytest.mark.parametrize("sink", [0.0, 3.0, -30.0, 30.0])
@pytest.mark.parametrize("name", MASKING)
def test_learned_sink(name: str, sink: float):
    feature, mask = MASKING[name]
    query, key = random_query_key()
    learned = sink + torch.tensor([0.5, -0.5])
    statistics = statistics_of(AttentionInputs(query, key, **feature, learned_sink=learned))
    assert_statistics_match(statistics, attention_matrix(query, key, attn_mask=mask, learned_sink=learned))


@pytest.mark.parametrize("sink", [torch.inf, torch.nan])
def test_learned_sink_that_is_not_finite(sink: float):
    query, key = random_query_key()
    learned = torch.tensor([0.0, sink])
    assert statistics_of(AttentionInputs(query, key, learned_sink=learned)).nonfinite.tolist() == [0, 1]


def test_learned_sink_changes_nothing_but_its_share():
    query, key = random_query_key()
    found = statistics_of(AttentionInputs(query, key, is_causal=True, learned_sink=torch.tensor([3.0, -1.0])))
    without = statistics_of(AttentionInputs(query, key, is_causal=True))
    assert (found.sink_mass > without.sink_mass + 0.01).all()
    assert (found.max_weight < without.max_weight - 0.01).all()
    for name in Statistic.registry.keys() - {"sink_mass", "max_weight"}:
        torch.testing.assert_close(getattr(found, name), getattr(without, name), rtol=0, atol=0, msg=name)


def test_learned_sink_that_takes_nothing():
    query, key = random_query_key()
    found = statistics_of(AttentionInputs(query, key, learned_sink=torch.full((HEADS,), -torch.inf)))
    without = statistics_of(AttentionInputs(query, key))
    for name in Statistic.registry:
        torch.testing.assert_close(getattr(found, name), getattr(without, name), msg=name)


def test_learned_sink_with_positions_in_the_rows_that_are_looked_at():
    query, key = random_query_key()
    rows, learned = torch.tensor([0, 3, 8]), torch.tensor([1.0, 2.0])
    positions = torch.arange(TOKENS).expand(BATCH, -1)
    inputs = AttentionInputs(query, key, is_causal=True, learned_sink=learned, positions=positions)
    matrix = attention_matrix(query, key, is_causal=True, learned_sink=learned)
    assert_statistics_match(statistics_of(inputs, rows), matrix, rows=rows.tolist())


def test_weights_with_a_learned_sink():
    query, key = random_query_key()
    learned = torch.tensor([1.0, 2.0])
    weights, visible = attention_weights(AttentionInputs(query, key, is_causal=True, learned_sink=learned), POSITIONS)
    matrix = attention_matrix(query, key, is_causal=True, learned_sink=learned)
    for index in itertools.product(range(BATCH), range(HEADS), range(TOKENS)):
        true = torch.cat(
            [matrix.logits[index].masked_fill(~matrix.visible[index], -torch.inf), learned[index[1]][None]]
        )
        torch.testing.assert_close(weights[index].double(), true.softmax(-1)[:-1], rtol=1e-5, atol=1e-6)
    assert visible[0, 0].equal(BACK >= 0)


def test_uniform_attention_with_a_learned_sink_gives_every_key_the_same():
    zeros = torch.zeros(BATCH, HEADS, TOKENS, HEAD_DIM)
    inputs = AttentionInputs(zeros, zeros, is_causal=True, learned_sink=torch.zeros(HEADS))
    torch.testing.assert_close(attention_received(inputs, None, None), torch.ones(BATCH, TOKENS))
    statistics = statistics_of(inputs)
    torch.testing.assert_close(statistics.normalized_entropy, torch.ones(HEADS))
    torch.testing.assert_close(statistics.sink_mass, (2 / (POSITIONS[1:] + 2.0)).mean().expand(HEADS))


def test_nan_in_a_position_bias_is_not_hidden():
    query, key = random_query_key()
    statistics = statistics_of(AttentionInputs(query, key, position_bias=torch.full((TOKENS, TOKENS), torch.nan)))
    assert statistics.nonfinite.tolist() == [1, 1]


def test_without_positions_there_is_no_distance():
    query, key = random_query_key()
    with_positions = statistics_of(AttentionInputs(query, key))
    without = statistics_of(AttentionInputs(query, key, has_positions=False))
    assert without.distance.isnan().all()
    others = [name for name in Statistic.registry if name != "distance"]
    assert all(getattr(without, name).equal(getattr(with_positions, name)) for name in others)


def test_features_hold_for_the_rows_that_are_looked_at():
    query, key = random_query_key()
    rows = torch.tensor([1, 4, 8])
    feature, mask = MASKING["all together"]
    bias = torch.randn(TOKENS, TOKENS)
    statistics = statistics_of(AttentionInputs(query, key, **feature, position_bias=bias, query_mask=REAL), rows)
    matrix = attention_matrix(query, key, attn_mask=mask, position_bias=bias)
    assert_statistics_match(statistics, matrix, rows=rows.tolist(), query_mask=REAL)
