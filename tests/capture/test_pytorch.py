"""Modules that call torch's own attention, directly or through torch.nn.MultiheadAttention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from attnwatch import AttentionStatistics, attention_statistics
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import (
    HEAD_DIM,
    HEADS,
    LENGTHS,
    TOKENS,
    WIDTH,
    AliasedAttention,
    FusedAttention,
    IndirectAttention,
    gpt,
    llama,
    seeded,
    token_ids,
)

ATTENTIONS = {"direct": FusedAttention, "alias": AliasedAttention, "helper of a helper": IndirectAttention}
BATCH = len(LENGTHS)


def record(model: nn.Module, *args, num_query_rows: int | None = None, **kwargs) -> AttentionHistory:
    with AttentionRecorder(model, num_query_rows=num_query_rows) as recorder:
        with recorder.step(0):
            model(*args, **kwargs)
        return recorder.history()


def assert_same(
    history: AttentionHistory,
    site: str,
    expected: AttentionStatistics,
    *,
    without: tuple[str, ...] = (),
    coverage: str = "observed",
):
    assert history.coverage[site] == coverage
    for name in Statistic.registry:
        if name not in without:
            recorded = torch.from_numpy(history[name][0, history.sites.index(site)])
            torch.testing.assert_close(recorded, getattr(expected, name), equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_module_that_calls_the_fused_attention(attention: type[FusedAttention]):
    module, x = seeded(attention), torch.randn(BATCH, TOKENS, WIDTH)
    query, key, _ = module.heads(x)
    history = record(module, x)
    assert history.sites == (attention.__name__,)
    assert_same(history, attention.__name__, attention_statistics(query, key, is_causal=True))


@pytest.mark.parametrize("attention", [AliasedAttention, IndirectAttention])
def test_every_call_is_counted_once(attention: type[FusedAttention]):
    """A call that is counted twice has the same means, but half the sampling variance."""
    expected, history = (record(gpt(kind), token_ids(), num_query_rows=6) for kind in (FusedAttention, attention))
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name], expected[name])


class Pooling(FusedAttention):
    """Attends itself, with attention modules of several kinds inside."""

    def __init__(self):
        super().__init__()
        self.inner = FusedAttention()
        self.multihead = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.language_model = llama()

    def forward(self, x: Tensor) -> Tensor:
        x = x + super().forward(self.inner(x))
        x = x + self.multihead(x, x, x, need_weights=False)[0]
        return self.language_model.model(inputs_embeds=x, use_cache=False).last_hidden_state


@pytest.mark.parametrize(
    "sites", [None, ["Pooling"], ["inner"], ["multihead"], ["Pooling", "language_model.model.layers.1.*"]], ids=str
)
def test_nested_sites_keep_their_own_calls(sites: list[str] | None):
    module, x = seeded(Pooling), torch.randn(BATCH, TOKENS, WIDTH)
    query, key, _ = module.heads(module.inner(x))
    inner_query, inner_key, _ = module.inner.heads(x)
    expected = {
        "Pooling": attention_statistics(query, key, is_causal=True),
        "inner": attention_statistics(inner_query, inner_key, is_causal=True),
    }
    with AttentionRecorder(module, num_query_rows=None, sites=sites) as recorder:
        with recorder.step(0):
            module(x)
        history = recorder.history()
    assert set(history.coverage.values()) == {"observed"}
    for site in expected.keys() & set(history.sites):
        assert_same(history, site, expected[site])


class Masked(nn.Module):
    def forward(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, key, mask)


@pytest.mark.parametrize("create_mask", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize("queries", [5, TOKENS])
def test_mask_that_is_torchs_own_causal_bias(create_mask, queries: int):
    """It is a tensor without values; torch knows it by the function that is patched here."""
    module, mask = Masked(), create_mask(queries, TOKENS)
    query, key = torch.randn(2, HEADS, queries, HEAD_DIM), torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    offset = TOKENS - queries if create_mask is causal_lower_right else 0
    dense = torch.ones(queries, TOKENS, dtype=torch.bool).tril(offset)
    with AttentionRecorder(module, num_query_rows=None) as recorder:
        with recorder.step(0):
            output = module(query, key, mask)
        history = recorder.history()
        torch.testing.assert_close(output, module(query, key, dense))
    without = ("distance",) if queries != TOKENS else ()
    assert_same(history, "Masked", attention_statistics(query, key, attn_mask=dense), without=without)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_not_observed():
    parts = [torch.randn(tokens, HEADS, HEAD_DIM) for tokens in (5, 3)]
    query = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    module = Masked()
    expected = module(query, query)
    with AttentionRecorder(module) as recorder, recorder.step(0):
        assert module(query, query).values().equal(expected.values())
    assert recorder.coverage() == {"Masked": "nested tensors are not observed; use a padded batch"}


class WithoutHeads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_query_without_heads_is_not_observed():
    history = record(WithoutHeads(), torch.randn(BATCH, TOKENS, WIDTH))
    assert "query has 3 dimensions" in history.coverage["WithoutHeads"]
    assert all(torch.from_numpy(history[name]).isnan().all() for name in Statistic.registry)


class Grouped(nn.Module):
    def forward(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, key, mask, 0.0, False, scale=0.5, enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_all_arguments_are_taken_over(dtype: torch.dtype):
    query, key = torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM), torch.randn(BATCH, 2, TOKENS, HEAD_DIM)
    mask = torch.rand(BATCH, 1, TOKENS, TOKENS) < 0.7
    mask[..., 0] = mask.diagonal(dim1=-2, dim2=-1)[...] = True
    if dtype != torch.bool:
        mask = torch.randn(mask.shape).masked_fill(~mask, -torch.inf)
    expected = attention_statistics(query, key, attn_mask=mask, scale=0.5, enable_gqa=True)
    assert_same(record(Grouped(), query, key, mask), "Grouped", expected)


# torch.nn.MultiheadAttention

UPPER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
PADDING = torch.arange(TOKENS) >= torch.tensor(LENGTHS)[:, None]
MASKS = {
    "none": {},
    "bool 2D": {"attn_mask": UPPER},
    "bool 3D": {"attn_mask": torch.stack([UPPER if head % 2 else UPPER.mT for head in range(BATCH * HEADS)])},
    "float 2D": {"attn_mask": torch.randn(TOKENS, TOKENS)},
    "float 3D": {"attn_mask": torch.randn(BATCH * HEADS, TOKENS, TOKENS).masked_fill(UPPER, -torch.inf)},
    "padding": {"key_padding_mask": PADDING},
    "padding, bool": {"key_padding_mask": PADDING, "attn_mask": UPPER},
    "padding, float": {
        "key_padding_mask": torch.zeros(BATCH, TOKENS).masked_fill(PADDING, -torch.inf),
        "attn_mask": torch.randn(TOKENS, TOKENS),
    },
}


def multihead(**options) -> nn.MultiheadAttention:
    return seeded(lambda: nn.MultiheadAttention(WIDTH, HEADS, **({"batch_first": True} | options)))


def of_weights(weights: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Entropy and sink mass per head from attention weights [batch, heads, queries, keys]."""
    weights = weights.detach().double()
    num_visible = (weights > 0).sum(-1)
    counts = counts & (num_visible >= 2)
    first = (weights > 0).to(torch.uint8).argmax(-1, keepdim=True)
    rows = {"entropy": torch.special.entr(weights).sum(-1), "sink_mass": weights.gather(-1, first).squeeze(-1)}
    return {name: torch.where(counts, row, 0).sum((0, 2)) / counts.sum((0, 2)) for name, row in rows.items()}


def assert_matches_weights(history: AttentionHistory, weights: Tensor, query_padding: Tensor | None = None):
    counts = torch.ones(weights.shape[:3], dtype=torch.bool)
    if query_padding is not None:
        counts &= ~query_padding[:, None]
    for name, expected in of_weights(weights, counts).items():
        recorded = torch.from_numpy(history[name][0, 0]).double()
        torch.testing.assert_close(recorded, expected, rtol=0, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
def test_multihead_attention(masks: dict[str, Tensor], need_weights: bool):
    module, x = multihead(), torch.randn(BATCH, TOKENS, WIDTH)
    weights = module(x, x, x, average_attn_weights=False, **masks)[1]
    history = record(module, x, x, x, need_weights=need_weights, **masks)
    assert history.coverage == {"MultiheadAttention": "observed"}
    assert_matches_weights(history, weights, PADDING if "key_padding_mask" in masks else None)


@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "tokens first"])
def test_multihead_cross_attention_of_other_widths(batch_first: bool, need_weights: bool):
    module = multihead(kdim=20, vdim=24, batch_first=batch_first, bias=False)
    tensors = [torch.randn(BATCH, 5, WIDTH), torch.randn(BATCH, TOKENS, 20), torch.randn(BATCH, TOKENS, 24)]
    if not batch_first:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    weights = module(*tensors, average_attn_weights=False)[1]
    history = record(module, *tensors, None, need_weights)
    assert_matches_weights(history, weights)
    assert torch.from_numpy(history["distance"]).isnan().all()


@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
def test_multihead_attention_of_one_sequence(need_weights: bool):
    module, x = multihead(), torch.randn(TOKENS, WIDTH)
    weights = module(x, x, x, average_attn_weights=False, key_padding_mask=PADDING[1])[1]
    history = record(module, x, x, x, need_weights=need_weights, key_padding_mask=PADDING[1])
    assert_matches_weights(history, weights[None], PADDING[1:2])


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_multihead_attention_with_added_keys(option: str):
    """The weights that are returned have them, the queries that are projected once more do not."""
    module, x = multihead(**{option: True}), torch.randn(BATCH, TOKENS, WIDTH)
    weights = module(x, x, x, average_attn_weights=False)[1]
    assert_matches_weights(record(module, x, x, x, need_weights=False), weights)
    reason = record(module, x, x, x).coverage["MultiheadAttention"]
    assert "read with need_weights=False only" in reason


@pytest.mark.parametrize("padding", [None, PADDING], ids=["no padding", "padding"])
def test_transformer_encoder_and_decoder(padding: Tensor | None):
    module = seeded(lambda: nn.Transformer(WIDTH, HEADS, 2, 2, 48, dropout=0.0, batch_first=True))
    source, target = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, TOKENS, WIDTH)
    masks = {"tgt_mask": UPPER, "src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    history = record(module, source, target, **masks, tgt_is_causal=True)
    assert history.sites == (
        *(f"encoder.layers.{layer}.self_attn" for layer in range(2)),
        *(f"decoder.layers.{layer}.{kind}" for layer in range(2) for kind in ("self_attn", "multihead_attn")),
    )
    assert set(history.coverage.values()) == {"observed"}
    for site, has_distance in zip(history.sites, (True, True, True, False, True, False), strict=True):
        distance = torch.from_numpy(history["distance"][0, history.sites.index(site)])
        assert distance.isfinite().all() if has_distance else distance.isnan().all()
    layer = module.encoder.layers[0].self_attn
    weights = layer(source, source, source, key_padding_mask=padding, average_attn_weights=False)[1]
    assert_matches_weights(history, weights, padding)


def test_one_module_called_twice_is_one_site():
    module, x = seeded(lambda: nn.ModuleList([FusedAttention()])), torch.randn(2, TOKENS, WIDTH)
    module.forward = lambda x: module[0](module[0](x))
    history = record(module, x)
    heads = [module[0].heads(x), module[0].heads(module[0](x))]
    query, key = (torch.cat([call[index] for call in heads]) for index in (0, 1))
    assert_same(
        history,
        "0",
        attention_statistics(query, key, is_causal=True),
        without=("content_sensitivity",),  # which compares within a call
        coverage="observed; it runs 2 times per forward with the same weights; statistics cover all calls",
    )


@pytest.mark.parametrize("queries", [1, 5])
def test_queries_that_are_not_the_keys_have_no_distance(queries: int):
    """Keys before the queries, as with a cache or a prefix: query 0 is not key 0."""
    query, key = torch.randn(2, HEADS, queries, HEAD_DIM), torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    history = record(Masked(), query, key)
    assert torch.from_numpy(history["distance"]).isnan().all()
    assert_same(history, "Masked", attention_statistics(query, key), without=("distance",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_multihead_attention_is_named():
    module, x = multihead(), torch.randn(2, TOKENS, WIDTH)
    history = record(torch.compile(module, backend="aot_eager"), x, x, x)
    assert history.coverage["MultiheadAttention"].startswith("torch.nn.MultiheadAttention inside torch.compile is not")
    assert all(torch.from_numpy(history[name]).isnan().all() for name in Statistic.registry)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_watched_model_is_exported_as_it_is():
    module, x = seeded(FusedAttention), torch.randn(2, TOKENS, WIDTH)
    with AttentionRecorder(module) as recorder, recorder.step(0):
        exported = torch.export.export(module, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), module(x))
    assert not [node for node in exported.graph.nodes if "attnwatch" in str(node.target)]
