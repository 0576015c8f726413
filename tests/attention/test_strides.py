"""Tensors lie in memory in any order, with gaps, repeated or overlapping: the numbers are those of their values."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnwatch import attention_entropy, attention_statistics
from attnwatch.attention import Accumulator, AttentionInputs, attention_received, attention_weights
from attnwatch.statistics import Statistic
from tests.support.oracle import assert_entropy_matches, assert_statistics_match, attention_matrix

BATCH, KEY_HEADS, TOKENS, HEAD_DIM = 2, 2, 5, 8


def permuted(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values, the dimensions stored in another order."""
    back = [order.index(dimension) for dimension in range(len(order))]
    return tensor.permute(order).contiguous().permute(back)


def with_gaps(tensor: Tensor, dimension: int) -> Tensor:
    """Every other element of a larger tensor, whose others are nan."""
    shape = list(tensor.shape)
    shape[dimension] *= 2
    larger = torch.full(shape, torch.nan if tensor.is_floating_point() else 1, dtype=tensor.dtype)
    index = [slice(None)] * tensor.ndim
    index[dimension] = slice(1, None, 2)
    larger[tuple(index)] = tensor
    return larger[tuple(index)]


def at_an_odd_address(tensor: Tensor) -> Tensor:
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    flat[1:] = tensor.flatten()
    return flat[1:].view(tensor.shape)


def repeated(tensor: Tensor, dimension: int) -> Tensor:
    return tensor.narrow(dimension, 0, 1).expand(tensor.shape)


def overlapping(tensor: Tensor) -> Tensor:
    """Each row begins one element after the one before, as in a sliding window over a signal."""
    tensor = tensor.contiguous()
    return tensor.as_strided(tensor.shape, (*tensor.stride()[:2], 1, 1))


def imaginary(tensor: Tensor) -> Tensor:
    """Of complex numbers, conjugated: two elements apart and negated when read."""
    return torch.complex(torch.full_like(tensor, torch.nan), -tensor).conj().imag


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "last two swapped": lambda tensor: permuted(tensor, (0, 1, 3, 2)),
    "heads last": lambda tensor: permuted(tensor, (0, 2, 3, 1)),
    "heads inside": lambda tensor: permuted(tensor, (0, 2, 1, 3)),
    "batch last": lambda tensor: permuted(tensor, (3, 2, 1, 0)),
    "tokens last": lambda tensor: permuted(tensor, (1, 3, 0, 2)),
    **{f"gaps in {i}": lambda tensor, i=i: with_gaps(tensor, i) for i in range(4)},
    **{f"repeated in {i}": lambda tensor, i=i: repeated(tensor, i) for i in range(4)},
    "odd address": at_an_odd_address,
    "overlapping": overlapping,
    "imaginary": imaginary,
}
MASK_LAYOUTS = {name: layout for name, layout in LAYOUTS.items() if name not in ("overlapping", "imaginary")}


def assert_equals_the_oracle(query: Tensor, key: Tensor, dtype: torch.dtype = torch.float32, **options):
    matrix = attention_matrix(query, key, **options)
    assert_entropy_matches(attention_entropy(query, key, **options), matrix)
    assert_statistics_match(attention_statistics(query, key, **options), matrix, dtype=dtype)


@pytest.mark.parametrize("of_key", LAYOUTS)
def test_layouts_of_query_and_key(of_key: str):
    key = LAYOUTS[of_key](torch.randn(BATCH, KEY_HEADS, TOKENS, HEAD_DIM))
    for layout in LAYOUTS.values():
        query, options = layout(torch.randn(BATCH, 2 * KEY_HEADS, TOKENS, HEAD_DIM)), {"enable_gqa": True}
        assert_entropy_matches(attention_entropy(query, key, **options), attention_matrix(query, key, **options))
    query = LAYOUTS[of_key](torch.randn(BATCH, 2 * KEY_HEADS, TOKENS, HEAD_DIM))
    assert_equals_the_oracle(query, key, is_causal=True, enable_gqa=True)


@settings(max_examples=60)
@given(st.data())
def test_drawn_layouts(data: st.DataObject):
    def drawn(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=dtype)
        for name in data.draw(st.lists(st.sampled_from(sorted(set(LAYOUTS) - {"imaginary"})), max_size=3)):
            tensor = LAYOUTS[name](tensor)
        return tensor

    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    queries, keys, head_dim = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 19), st.integers(1, 33)))
    query, key = drawn(BATCH, KEY_HEADS, queries, head_dim), drawn(BATCH, KEY_HEADS, keys, head_dim)
    mask = data.draw(st.sampled_from([None, torch.bool, dtype]))
    if mask is not None:
        mask = (drawn(BATCH, KEY_HEADS, queries, keys) > -0.5).to(mask)
        mask = MASK_LAYOUTS[data.draw(st.sampled_from(sorted(MASK_LAYOUTS)))](mask)
    assert_equals_the_oracle(query, key, dtype, attn_mask=mask, is_causal=data.draw(st.booleans()))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("of_mask", MASK_LAYOUTS)
def test_layouts_of_the_mask(of_mask: str, dtype: torch.dtype):
    query, key = torch.randn(BATCH, KEY_HEADS, TOKENS, HEAD_DIM), torch.randn(BATCH, KEY_HEADS, 19, HEAD_DIM)
    mask = MASK_LAYOUTS[of_mask]((torch.randn(BATCH, KEY_HEADS, TOKENS, 19) > -0.5).to(dtype))
    assert_equals_the_oracle(query, key, attn_mask=mask)


def test_swapped_dimensions_give_the_same_answer_each_time():
    """As convolutional attention has them: channels before tokens."""
    query, key = torch.randn(2, 3, 16, 50).transpose(-1, -2), torch.randn(2, 3, 16, 50).transpose(-1, -2)
    matrix = attention_matrix(query, key)
    for _ in range(5):
        assert_entropy_matches(attention_entropy(query, key), matrix)


@pytest.mark.parametrize("of_key", LAYOUTS)
def test_weights_and_what_keys_receive(of_key: str):
    query, key = torch.randn(BATCH, KEY_HEADS, TOKENS, HEAD_DIM), torch.randn(BATCH, KEY_HEADS, TOKENS, HEAD_DIM)
    query, key = LAYOUTS["last two swapped"](query), LAYOUTS[of_key](key)
    inputs = AttentionInputs(query, key, is_causal=True)
    packed = AttentionInputs(query.contiguous(), key.contiguous(), is_causal=True)
    rows = torch.arange(TOKENS)
    torch.testing.assert_close(attention_weights(inputs, rows)[0], attention_weights(packed, rows)[0])
    torch.testing.assert_close(attention_received(inputs, None, None), attention_received(packed, None, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_small_dtypes_in_any_layout(dtype: torch.dtype):
    query = torch.randn(BATCH, KEY_HEADS, HEAD_DIM, TOKENS).to(dtype).transpose(-1, -2)
    key = torch.randn(BATCH, KEY_HEADS, HEAD_DIM, TOKENS).to(dtype).transpose(-1, -2)
    assert_equals_the_oracle(query, key)
    mask = torch.randn(TOKENS, TOKENS).to(dtype)
    matrix = attention_matrix(query, key, attn_mask=mask.float())
    assert_entropy_matches(attention_entropy(query, key, attn_mask=mask), matrix)
    assert_statistics_match(attention_statistics(query, key, attn_mask=mask), matrix)


def test_float64_of_one_of_the_two_is_kept():
    query, key = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 5, 8, dtype=torch.float64)
    entropy = attention_entropy(query, key)
    assert entropy.dtype == torch.float64
    assert_entropy_matches(entropy, attention_matrix(query, key))


class Named(torch.Tensor):
    """Of a library that gives tensors a class of its own."""


@pytest.mark.parametrize(
    "kind", [torch.nn.Parameter, lambda tensor: tensor.as_subclass(Named)], ids=["parameter", "own"]
)
def test_subclasses(kind: Callable[[Tensor], Tensor]):
    query, key = torch.randn(1, 2, 16, 5).transpose(-1, -2), torch.randn(1, 2, 16, 5).transpose(-1, -2)
    expected = attention_entropy(query, key)
    assert attention_entropy(kind(query), kind(key)).equal(expected)
    assert not attention_entropy(kind(query), kind(key)).requires_grad
    assert attention_statistics(kind(query), kind(key)).entropy.equal(attention_statistics(query, key).entropy)


def test_default_dtype_and_device_of_the_process_change_nothing():
    query, key, mask = torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), torch.zeros(9)
    generator = torch.Generator().manual_seed(0)
    expected = attention_entropy(query, key, attn_mask=mask)
    sampled = attention_statistics(query, key, num_query_rows=3, generator=generator)
    generator.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        entropy = attention_entropy(query, key, attn_mask=mask)
        again = attention_statistics(query, key, num_query_rows=3, generator=generator)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert entropy.dtype == expected.dtype
    assert entropy.equal(expected)
    assert all(
        getattr(again, name).equal(getattr(sampled, name))
        for name in Statistic.registry
        if name != "content_sensitivity"
    )


@pytest.mark.parametrize(
    ("query", "key"),
    [((0, 2, 4, 8), (0, 2, 6, 8)), ((2, 2, 0, 8), (2, 2, 6, 8)), ((2, 2, 4, 8), (2, 2, 0, 8)), ((2, 2, 4, 0),) * 2],
    ids=["no sequences", "no queries", "no keys", "no features"],
)
def test_calls_without_anything_in_them_count_for_nothing(query: tuple[int, ...], key: tuple[int, ...]):
    inputs = AttentionInputs(torch.zeros(query), torch.zeros(key), is_causal=True)
    sums = Accumulator().sums(inputs, torch.arange(query[2]))
    assert sums.shape == (len(Statistic.registry), 2, query[1])
    assert (sums[:, 1] == 0).all()
    assert attention_received(inputs, 2, None).shape == (key[0], key[2])
