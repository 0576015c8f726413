"""The masks that models use: padding, packed documents, windows, cross-attention."""

import pytest
import torch
from torch import Tensor

from attnwatch import attention_entropy, attention_statistics
from tests.support.oracle import assert_entropy_matches, assert_statistics_match, attention_matrix

BATCH, HEADS, TOKENS, HEAD_DIM = 2, 3, 10, 8
POSITIONS = torch.arange(TOKENS)
LENGTHS = torch.tensor([10, 6])
RIGHT_PADDED = LENGTHS[:, None] > POSITIONS
LEFT_PADDED = RIGHT_PADDED.flip(-1)
DOCUMENTS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3])
MASKS = {
    "left padding": {"attn_mask": LEFT_PADDED[:, None, None], "is_causal": True},
    "right padding": {"attn_mask": RIGHT_PADDED[:, None, None]},
    "causal right padding": {"attn_mask": RIGHT_PADDED[:, None, None], "is_causal": True},
    "packed": {"attn_mask": DOCUMENTS[:, None] == DOCUMENTS},
    "causal packed": {"attn_mask": DOCUMENTS[:, None] == DOCUMENTS, "is_causal": True},
    "sliding window": {"attn_mask": (POSITIONS[:, None] - POSITIONS).abs() < 3},
    "causal sliding window": {"attn_mask": (POSITIONS[:, None] - POSITIONS) < 3, "is_causal": True},
    "per row, for all keys": {"attn_mask": POSITIONS[:, None] != 4},
    "for all rows": {"attn_mask": POSITIONS != 4},
}
QUERY_MASKS = {"left padding": LEFT_PADDED, "right padding": RIGHT_PADDED, "causal right padding": RIGHT_PADDED}


def random_query_key() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM), torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM)


def as_float(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("name", MASKS)
def test_mask(name: str, kind: str):
    query, key = random_query_key()
    options = dict(MASKS[name])
    if kind == "float":
        options["attn_mask"] = as_float(options["attn_mask"])
    query_mask = QUERY_MASKS.get(name)
    matrix = attention_matrix(query, key, **options)
    assert_entropy_matches(attention_entropy(query, key, **options), matrix)
    statistics = attention_statistics(query, key, **options, query_mask=query_mask)
    assert_statistics_match(statistics, matrix, query_mask=query_mask)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(3, 11), (11, 3), (1, 11)])
def test_cross_attention(num_queries: int, num_keys: int, is_causal: bool):
    query, key = torch.randn(BATCH, HEADS, num_queries, HEAD_DIM), torch.randn(BATCH, HEADS, num_keys, HEAD_DIM)
    padding = torch.arange(num_keys) < torch.tensor([num_keys, 2])[:, None]
    options = {"attn_mask": padding[:, None, None], "is_causal": is_causal}
    matrix = attention_matrix(query, key, **options)
    assert_entropy_matches(attention_entropy(query, key, **options), matrix)
    assert_statistics_match(attention_statistics(query, key, **options), matrix)


@pytest.mark.parametrize("garbage", [1e30, -torch.inf, torch.nan])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_padding_may_hold_anything(kind: str, is_causal: bool, garbage: float):
    query, key = random_query_key()
    length = 6
    real = torch.arange(TOKENS) < length
    expected_entropy = attention_entropy(query[:, :, :length], key[:, :, :length], is_causal=is_causal)
    expected = attention_statistics(query[:, :, :length], key[:, :, :length], is_causal=is_causal)
    query[:, :, length:] = key[:, :, length:] = garbage
    options = {"attn_mask": real if kind == "bool" else as_float(real), "is_causal": is_causal}
    entropy = attention_entropy(query, key, **options)
    statistics = attention_statistics(query, key, **options, query_mask=real.expand(BATCH, -1))
    torch.testing.assert_close(entropy[:, :, :length], expected_entropy)
    for name, value in vars(expected).items():
        if name != "num_rows":
            torch.testing.assert_close(getattr(statistics, name), value, msg=name)


def test_packed_documents_are_as_if_apart():
    query, key = random_query_key()
    packed = attention_entropy(query, key, attn_mask=DOCUMENTS[:, None] == DOCUMENTS)
    lengths = DOCUMENTS.bincount().tolist()
    documents = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True)
    apart = [attention_entropy(*document) for document in documents]
    torch.testing.assert_close(packed, torch.cat(apart, dim=-1))


def test_sink_is_the_first_visible_key():
    query, key = torch.zeros(1, 1, TOKENS, HEAD_DIM), torch.randn(1, 1, TOKENS, HEAD_DIM)
    query[..., 0], key[..., 0] = 30.0, 0.0
    key[:, :, 4, 0] = 10.0  # nearly all weight on key 4
    masks = [torch.arange(TOKENS) >= first for first in (3, 4, 5)]
    masses = [attention_statistics(query, key, attn_mask=mask).sink_mass.item() for mask in masks]
    assert masses == pytest.approx([0, 1, 1 / 5], abs=1e-6)
