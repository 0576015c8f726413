"""On a GPU, where another fused kernel computes the entropy."""

import pytest
import torch

from attnwatch import attention_entropy, attention_statistics
from tests.support.oracle import assert_entropy_matches, assert_statistics_match, attention_matrix

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


LAYOUTS = {
    "last two swapped": lambda tensor: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
    "heads inside": lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "repeated tokens": lambda tensor: tensor[:, :, :1].expand_as(tensor),
    "repeated features": lambda tensor: tensor[..., :1].expand_as(tensor),
    "gaps": lambda tensor: torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1).flatten(-2)[..., ::2],
    "odd address": lambda tensor: torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape),
}


@pytest.mark.parametrize("mask", [None, torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) > 0.4])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, mask: torch.Tensor | None):
    layout = LAYOUTS[name]
    query, key = layout(torch.randn(2, 4, 8, 8).cuda()), layout(torch.randn(2, 4, 12, 8).cuda())
    mask = None if mask is None else layout(mask.expand(2, 4, 8, 12).float().cuda()) > 0
    matrix = attention_matrix(query.cpu(), key.cpu(), attn_mask=None if mask is None else mask.cpu())
    assert_entropy_matches(attention_entropy(query, key, attn_mask=mask).cpu(), matrix)
    assert_statistics_match(_to_cpu(attention_statistics(query, key, attn_mask=mask)), matrix)


def test_layouts_of_a_mask():
    query, key = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 12, 8)
    mask = (torch.rand(2, 4, 12, 8) > 0.4).transpose(-1, -2)
    entropy = attention_entropy(query.cuda(), key.cuda(), attn_mask=mask.cuda())
    assert_entropy_matches(entropy.cpu(), attention_matrix(query, key, attn_mask=mask))


def test_more_heads_than_a_grid_has_blocks():
    query, key = torch.randn(1, 65536, 2, 4), torch.randn(1, 65536, 3, 4)
    entropy = attention_entropy(query.cuda(), key.cuda())[:, -8:]
    assert_entropy_matches(entropy.cpu(), attention_matrix(query[:, -8:], key[:, -8:]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("places", [[0], [2], [1, 2, 3], [0, 1, 2, 3]], ids=str)
def test_visible_logits_that_are_not_finite(places: list[int], value: float):
    query, key = torch.zeros(1, 1, 1, 4), torch.randn(1, 1, 4, 4)
    query[..., 0] = 1.0
    key[:, :, places, 0] = value
    for mask in (None, torch.zeros(4)):
        on_gpu = {"query": query.cuda(), "key": key.cuda(), "attn_mask": None if mask is None else mask.cuda()}
        assert attention_entropy(**on_gpu).isnan().all()
        assert attention_statistics(**on_gpu).nonfinite.item() == 1


@pytest.mark.parametrize("scale", [1e12, 1e21, -1e21])
def test_large_logits_are_finite(scale: float):
    query, key = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 12, 8)
    matrix = attention_matrix(query, key, scale=scale)
    assert_entropy_matches(attention_entropy(query.cuda(), key.cuda(), scale=scale).cpu(), matrix)
    assert_statistics_match(_to_cpu(attention_statistics(query.cuda(), key.cuda(), scale=scale)), matrix)


def _to_cpu(statistics):
    tensors = {name: value.cpu() for name, value in vars(statistics).items() if name != "num_rows"}
    return type(statistics)(**tensors, num_rows=statistics.num_rows)
