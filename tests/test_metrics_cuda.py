"""On a GPU, where another fused kernel computes the entropy."""

import pytest
import torch
from oracle import assert_entropy_matches, assert_statistics_match, attention_matrix

from attnwatch import attention_entropy, attention_statistics

pytestmark = pytest.mark.cuda

MASKS = {
    "none": None,
    "key padding": torch.arange(37) > 4,
    "per row": torch.rand(21, 37, generator=torch.Generator().manual_seed(0)) > 0.5,
    "per row, for all keys": torch.arange(21)[:, None] != 4,
    "float": torch.randn(21, 37, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(torch.float32, 8), (torch.float32, 6), (torch.float64, 8), (torch.bfloat16, 64), (torch.float16, 64)],
    ids=str,
)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", MASKS)
def test_entropy_and_statistics(name: str, is_causal: bool, dtype: torch.dtype, head_dim: int):
    query, key = torch.randn(2, 4, 21, head_dim, dtype=dtype), torch.randn(2, 2, 37, head_dim, dtype=dtype)
    mask = MASKS[name]
    options = {"is_causal": is_causal, "enable_gqa": True}
    matrix = attention_matrix(query, key, attn_mask=mask, **options)
    on_gpu = {"query": query.cuda(), "key": key.cuda(), "attn_mask": None if mask is None else mask.cuda(), **options}
    entropy = attention_entropy(**on_gpu)
    assert entropy.is_cuda
    assert_entropy_matches(entropy.cpu(), matrix)
    assert_statistics_match(_to_cpu(attention_statistics(**on_gpu)), matrix)


def test_nonfinite_key_is_nan_only_where_it_is_seen():
    query, key = torch.randn(1, 2, 9, 8).cuda(), torch.randn(1, 2, 9, 8).cuda()
    key[:, :, 5] = torch.inf
    entropy = attention_entropy(query, key, is_causal=True)
    assert entropy[:, :, :5].isfinite().all()
    assert entropy[:, :, 5:].isnan().all()


def _to_cpu(statistics):
    tensors = {name: value.cpu() for name, value in vars(statistics).items() if name != "num_rows"}
    return type(statistics)(**tensors, num_rows=statistics.num_rows)
