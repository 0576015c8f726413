"""Masks that let every token see one key only are found, and what is no fault of a mask is not called one."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnwatch import AttentionRecorder, FindingKind, RunStatus, attention_statistics, diagnose

WIDTH, HEADS, LAYERS = 16, 2, 3


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, hidden, mask, *, is_causal=False):
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.projection(hidden).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return hidden + attended.transpose(1, 2).flatten(-2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Attention() for _ in range(LAYERS)])

    def forward(self, hidden, masks, **options):
        for layer, mask in zip(self.layers, masks, strict=True):
            hidden = layer(hidden, mask, **options)
        return hidden


def judged(tokens, masks, *, steps=40, queries=None, **options):
    """The verdict on a training in which layers get these masks."""
    torch.manual_seed(0)
    model = Model()
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=queries) as recorder:
        for step in range(steps):
            with recorder.step(step):
                loss = model(torch.randn(4, tokens, WIDTH), masks, **options).square().mean()
                recorder.record_loss(loss)
                loss.backward()
        return diagnose(recorder.history(), total_steps=1000)


ITSELF = torch.eye(12, dtype=torch.bool)
FIRST = torch.zeros(12, 12, dtype=torch.bool).index_fill(1, torch.tensor(0), True)


@pytest.mark.parametrize(
    "mask",
    [ITSELF, ITSELF.expand(4, 1, 12, 12), torch.zeros(12, 12).masked_fill(~ITSELF, -torch.inf)],
    ids=["bool", "of each sequence", "float"],
)
@pytest.mark.parametrize("rows", [None, 4], ids=["all rows", "some rows"])
def test_model_whose_tokens_see_only_themselves_is_blind(mask, rows):
    diagnosis = judged(12, [mask] * LAYERS, queries=rows)
    (finding,) = diagnosis.findings
    assert finding.kind is FindingKind.BLIND_ATTENTION
    assert not finding.is_note
    assert len(finding.sites) == LAYERS
    assert finding.step == 0
    assert diagnosis.status is RunStatus.NOT_CONVERGING
    assert diagnosis.risk >= finding.severity > 0
    assert "every query row sees a single key at 3 of 3 sites" in finding.message
    assert "check the attention mask" in finding.message


def test_it_is_known_after_a_few_observations():
    assert judged(12, [ITSELF] * LAYERS, steps=4).status is RunStatus.UNDETERMINED
    assert judged(12, [ITSELF] * LAYERS, steps=5).status is RunStatus.NOT_CONVERGING


def test_one_layer_that_is_meant_to_see_one_token_is_a_note():
    diagnosis = judged(12, [ITSELF, None, None])
    (note,) = [finding for finding in diagnosis.findings if finding.kind is FindingKind.BLIND_ATTENTION]
    assert note.is_note
    assert note.sites == ("layers.0",)
    assert not diagnosis.status.is_alarm


PADDED_TO_ONE = torch.zeros(4, 1, 1, 12, dtype=torch.bool).index_fill(3, torch.tensor(0), True)


@pytest.mark.parametrize(
    ("tokens", "mask", "options"),
    [
        (1, None, {}),
        (1, None, {"is_causal": True}),
        (12, PADDED_TO_ONE, {}),
        (12, PADDED_TO_ONE.expand(4, 1, 12, 12), {}),
        (12, torch.zeros(4, 1, 1, 12, dtype=torch.bool), {}),
        (12, torch.zeros(4, 1, 12, 12, dtype=torch.bool), {}),
    ],
    ids=["one token", "one token, causal", "one is no padding", "the same, of each row", "all padding", "all hidden"],
)
def test_sequences_with_nothing_else_to_see_are_no_fault_of_a_mask(tokens, mask, options):
    diagnosis = judged(tokens, [mask] * LAYERS, **options)
    assert diagnosis.findings == ()
    assert diagnosis.status is RunStatus.UNDETERMINED
    assert math.isnan(diagnosis.risk)


def test_blind_sequences_beside_others_are_no_finding():
    mask = torch.ones(4, 1, 12, 12, dtype=torch.bool)
    mask[0] = ITSELF
    assert not [finding for finding in judged(12, [mask] * LAYERS).findings if "single key" in finding.message]


def test_decode_steps_with_a_cache_are_no_finding():
    """One query, one key: the first token of a generation; then more keys."""
    query, key = torch.randn(2, HEADS, 1, 8), torch.randn(2, HEADS, 1, 8)
    assert attention_statistics(query, key).nonfinite.isnan().all()
    assert attention_statistics(query, torch.randn(2, HEADS, 5, 8)).normalized_entropy.isfinite().all()


def test_blind_rows_are_told_by_what_is_known_of_them():
    query, key = torch.randn(2, 2, HEADS, 12, 8)
    for mask in (ITSELF, FIRST):
        statistics = attention_statistics(query, key, attn_mask=mask)
        assert statistics.nonfinite.eq(0).all()
        assert statistics.normalized_entropy.isnan().all()
    query[0, 0, 3] = np.nan
    assert attention_statistics(query, key, attn_mask=ITSELF).nonfinite[0] == pytest.approx(1 / 24)
