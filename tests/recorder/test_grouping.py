"""Calls of layers that look alike are computed as one, with the numbers that each would have alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from attnwatch import AttentionRecorder
from attnwatch.attention import Accumulator, AttentionInputs, at_rows, joined, kind_of_call
from attnwatch.recorder.grouping import CallGroup
from tests.support.models import HEADS, TOKENS, WIDTH, FusedAttention, gpt, llama, token_ids


@given(data=st.data())
def test_joined_calls_have_the_numbers_of_each(data: st.DataObject):
    calls, queries, keys = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    batch, key_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    mask = torch.rand(batch, 1, queries, keys, generator=generator) < 0.7 if data.draw(st.booleans()) else None
    has_sink = data.draw(st.booleans())
    shared = {"is_causal": data.draw(st.booleans()), "attn_mask": mask, "has_positions": queries == keys}
    alone = [
        AttentionInputs(
            torch.randn(batch, key_heads * group, queries, 4, generator=generator),
            torch.randn(batch, key_heads, keys, 4, generator=generator),
            **shared,
            learned_sink=torch.randn(key_heads * group, generator=generator) if has_sink else None,
        )
        for _ in range(calls)
    ]
    number = data.draw(st.integers(1, queries))
    rows = torch.randperm(queries, generator=generator)[:number].sort().values
    assert len({kind_of_call(each, rows) for each in alone}) == 1
    first = at_rows(alone[0], rows)
    accumulator = Accumulator()
    together = accumulator.sums(joined([first, *(at_rows(each, rows, first) for each in alone[1:])]), rows)
    expected = [accumulator.values(accumulator.sums(each, rows)) for each in alone]
    torch.testing.assert_close(
        accumulator.values(together), torch.cat(expected, -1), rtol=1e-4, atol=1e-5, equal_nan=True
    )


def test_calls_that_differ_are_not_joined():
    rows, mask = torch.arange(4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    call = AttentionInputs(torch.randn(2, 4, 4, 8), torch.randn(2, 2, 4, 8), attn_mask=mask)
    others = [
        replace(call, attn_mask=mask.clone()),
        replace(call, is_causal=True),
        replace(call, scale=0.5),
        replace(call, sliding_window=2),
        replace(call, softcap=3.0),
        replace(call, has_positions=False),
        replace(call, key=call.key.double(), query=call.query.double()),
        replace(call, key=torch.randn(2, 4, 4, 8)),
        replace(call, query_mask=torch.ones(2, 4, dtype=torch.bool)),
        replace(call, position_bias=torch.zeros(1, 1, 4, 4)),
        replace(call, learned_sink=torch.zeros(4)),
    ]
    kinds = {kind_of_call(each, rows) for each in (call, *others)}
    assert len(kinds) == 1 + len(others)
    assert kind_of_call(call, rows.clone()) not in kinds
    assert kind_of_call(replace(call, attn_mask=mask.expand(1, 4, 4, 4)), rows) is None  # of each head its own


def test_layers_of_a_model_are_computed_together(monkeypatch):
    """Otherwise a GPU launches the same small kernels for every layer."""
    sizes = []

    def compute(self: CallGroup) -> None:
        sizes.append(len(self._calls))
        original(self)

    original = CallGroup.compute
    monkeypatch.setattr(CallGroup, "compute", compute)
    model = llama(layers=6)
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(token_ids())
    assert max(sizes) == 6


class Overwriting(FusedAttention):
    """Writes over its keys once it has used them, as a static cache does."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        with torch.no_grad():
            key.zero_()
            query.zero_()
        return self.output(mixed.transpose(1, 2).flatten(2))


def test_what_is_overwritten_after_the_call_is_recorded_as_it_was():
    histories = []
    for attention in (Overwriting, FusedAttention):
        model = gpt(attention)
        with AttentionRecorder(model) as recorder, recorder.step(0), torch.no_grad():
            model(token_ids())
        histories.append(recorder.history())
    np.testing.assert_array_equal(*[history["entropy"] for history in histories])


class MaskedAttention(FusedAttention):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        return self.output(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("written_after", [0, 1])
def test_mask_that_is_written_to_was_what_it_was(written_after: int):
    layers = nn.ModuleList(MaskedAttention() for _ in range(3))
    x, mask = torch.randn(2, TOKENS, WIDTH), torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]
    visible = []
    with AttentionRecorder(layers, num_query_rows=None) as recorder, recorder.step(0), torch.no_grad():
        for index, layer in enumerate(layers):
            visible.append(mask[0, 0].sum(-1)[mask[0, 0].sum(-1) > 1].double().log().mean())
            layer(x, mask)
            if index == written_after:
                mask.fill_(True)
    expected = torch.stack(visible)[:, None].expand(-1, HEADS)
    np.testing.assert_allclose(recorder.history()["max_entropy"][0], expected, rtol=1e-5)


class FewQueries(FusedAttention):
    """Some tokens look at all."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        mixed = F.scaled_dot_product_attention(query[:, :, : mask.shape[-2]], key, value, mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


def test_masks_that_live_for_one_call_are_told_apart():
    """The next mask is likely to get the memory, and so the identity, of the one that is gone."""
    layers, x = nn.ModuleList(FewQueries() for _ in range(6)), torch.randn(2, TOKENS, WIDTH)
    with AttentionRecorder(layers, num_query_rows=None) as recorder, recorder.step(0), torch.no_grad():
        for index, layer in enumerate(layers):
            layer(x, (torch.arange(TOKENS) <= index + 2).expand(1, 1, 5, TOKENS))
    expected = np.log(np.arange(6) + 3)[:, None].repeat(HEADS, 1)
    np.testing.assert_allclose(recorder.history()["max_entropy"][0], expected, rtol=1e-5)


def test_padding_that_is_written_to_is_asked_anew():
    """Which queries count follows the mask of each call, though layers are mostly given the same one."""
    layers, x = nn.ModuleList(MaskedAttention() for _ in range(2)), torch.randn(1, TOKENS, WIDTH)
    mask = torch.ones(1, 1, 1, TOKENS, dtype=torch.bool)
    mask[..., TOKENS // 2 :] = False  # the rest is padding
    with AttentionRecorder(layers, num_query_rows=None) as recorder, recorder.step(0), torch.no_grad():
        layers[0](x, mask)
        mask.fill_(True)
        layers[1](x, mask)
    alone = []
    for keys in (TOKENS // 2, TOKENS):
        with AttentionRecorder(layers, num_query_rows=None) as other, other.step(0), torch.no_grad():
            layers[0 if keys < TOKENS else 1](x[:, :keys], torch.ones(1, 1, 1, keys, dtype=torch.bool))
        alone.append(other.history()["entropy"][0, 0 if keys < TOKENS else 1])
    np.testing.assert_allclose(recorder.history()["entropy"][0], alone, rtol=1e-4)


def test_history_in_the_middle_of_a_step_has_what_came_so_far():
    model = gpt()
    with AttentionRecorder(model) as recorder, recorder.step(0):
        assert not recorder.has_seen_step
        model(token_ids())
        assert recorder.has_seen_step
        assert np.isfinite(recorder.history()["entropy"]).all()
        assert recorder.history()["entropy"].shape == (1, len(recorder.coverage()), HEADS)


@pytest.mark.parametrize("rows", [2, None])
def test_a_call_too_large_to_wait_is_computed_at_once(rows: int | None):
    group_calls = []
    group = CallGroup(
        Accumulator(), lambda name, sums: group_calls.append(name), lambda name, error: pytest.fail(str(error))
    )
    large = AttentionInputs(torch.randn(1, 2, 1024, 4), torch.randn(1, 2, 1024, 4), is_causal=True)
    looked_at = torch.arange(1024 if rows is None else rows)
    group.add("large", large, looked_at)
    assert group_calls == (["large"] if rows is None else [])
    group.compute()
    assert group_calls == ["large"]
