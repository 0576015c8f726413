"""Every wrong argument is named in the message, with what was expected and what came."""

import pytest
import torch

from attnwatch import AttnwatchError, ConfigurationError, attention_entropy, attention_statistics

BOTH = [attention_entropy, attention_statistics]
QUERY, KEY = torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 5, 8)
WRONG = {
    "query of three dimensions": (
        {"query": QUERY[0]},
        r"`query` must be a floating-point tensor \[batch, heads, tokens, head_dim\], "
        r"got torch.float32 of shape \[4, 6, 8\]",
    ),
    "integer key": (
        {"key": KEY.long()},
        r"`key` must be a floating-point tensor .*got torch.int64 of shape \[2, 4, 5, 8\]",
    ),
    "no queries": ({"query": QUERY[:, :, :0]}, r"`query` must not be empty, got shape \[2, 4, 0, 8\]"),
    "no keys": ({"key": KEY[:, :, :0]}, r"`key` must not be empty, got shape \[2, 4, 0, 8\]"),
    "other head_dim": (
        {"key": torch.zeros(2, 4, 5, 7)},
        r"`query` and `key` must agree in batch and head_dim, got \[2, 4, 6, 8\] and \[2, 4, 5, 7\]",
    ),
    "other batch": ({"key": KEY[:1]}, r"`query` and `key` must agree in batch and head_dim"),
    "fewer key heads": ({"key": KEY[:, :2]}, r"`query` has 4 heads and `key` 2: .*`enable_gqa=True` \(now False\)"),
    "heads that do not divide": (
        {"key": KEY[:, :3], "enable_gqa": True},
        r"`query` has 4 heads and `key` 3: equal numbers are expected, or a multiple",
    ),
    "integer mask": (
        {"attn_mask": torch.ones(6, 5, dtype=torch.long)},
        r"`attn_mask` must be bool \(True: allowed\) or float, got torch.int64",
    ),
    "mask of other keys": (
        {"attn_mask": torch.ones(6, 6)},
        r"`attn_mask` must be broadcastable to \[batch, heads, queries, keys\] = \[2, 4, 6, 5\], got \[6, 6\]",
    ),
    "mask of five dimensions": ({"attn_mask": torch.ones(1, 1, 1, 1, 5)}, r"`attn_mask` must be broadcastable to"),
}
WRONG_FOR_STATISTICS = {
    "no rows": ({"num_query_rows": 0}, r"`num_query_rows` must be at least 1, or None for all rows; got 0"),
    "query_mask of other queries": (
        {"query_mask": torch.ones(2, 5, dtype=torch.bool)},
        r"`query_mask` must be bool \[batch, queries\] = \[2, 6\], got torch.bool of shape \[2, 5\]",
    ),
    "float query_mask": ({"query_mask": torch.ones(2, 6)}, r"`query_mask` must be bool .*got torch.float32"),
}


@pytest.mark.parametrize("call", BOTH, ids=lambda call: call.__name__)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument_is_named(name: str, call):
    wrong, message = WRONG[name]
    with pytest.raises(ConfigurationError, match=message):
        call(**{"query": QUERY, "key": KEY, **wrong})


@pytest.mark.parametrize("name", WRONG_FOR_STATISTICS)
def test_wrong_argument_of_statistics_is_named(name: str):
    wrong, message = WRONG_FOR_STATISTICS[name]
    with pytest.raises(ConfigurationError, match=message):
        attention_statistics(QUERY, KEY, **wrong)


@pytest.mark.parametrize("base", [AttnwatchError, ValueError])
def test_error_is_caught_by_its_bases(base: type[Exception]):
    with pytest.raises(base):
        attention_statistics(QUERY, KEY, num_query_rows=0)
