"""Attention layers without a residual connection, found in the graph of autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import attnwatch

VOCABULARY, WIDTH, TOKENS, BATCH = 40, 32, 10, 4


def fused(query, key, value):
    return F.scaled_dot_product_attention(query, key, value)


def by_hand(query, key, value):
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    return F.dropout(weights, 0.1) @ value


def by_einsum(query, key, value):
    weights = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("bhqk,bhkd->bhqd", F.softmax(weights, -1), value)


class Attention(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attend = attend

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        heads = (
            f(each).unflatten(-1, (4, -1)).transpose(1, 2)
            for f, each in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        return self.out(self.attend(*heads).transpose(1, 2).flatten(2))


class Ready(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self, need_weights):
        super().__init__()
        self.attention, self.need_weights = nn.MultiheadAttention(WIDTH, 4, batch_first=True), need_weights

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        return self.attention(x, memory, memory, need_weights=self.need_weights)[0]


class Layer(nn.Module):
    def __init__(self, attention, has_residual, *, is_post_norm=False):
        super().__init__()
        self.attention, self.has_residual, self.is_post_norm = attention, has_residual, is_post_norm
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x):
        if self.is_post_norm:
            return self.norm2(self._with(x, self.attention(x)))
        x = self._with(x, self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))

    def _with(self, x, attended):
        return x + attended if self.has_residual else attended


class Encoder(nn.Module):
    """Encoder of tokens; `pool` makes one vector of them."""

    def __init__(self, layers, pool=None):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.layers, self.head, self.pool = nn.ModuleList(layers), nn.Linear(WIDTH, 3), pool

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1) if self.pool is None else self.pool(x))


class Pool(nn.Module):
    """Pooling by a learned query."""

    def __init__(self, attention):
        super().__init__()
        self.query, self.attention = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02), attention

    def forward(self, x):
        return self.attention(self.query.expand(len(x), -1, -1), x)[:, 0]


def checked(model):
    ids, labels = torch.randint(VOCABULARY, (BATCH, TOKENS)), torch.arange(BATCH) % 3
    return attnwatch.check_training(
        model.train(), ids, optimizers=torch.optim.AdamW(model.parameters()), forward=scored(labels)
    )


def scored(labels):
    return lambda model, ids: F.cross_entropy(model(ids), labels)


def missing(checkup):
    return [each for each in checkup.findings if "residual" in each.message]


ATTENTIONS = {
    "fused": lambda: Attention(fused),
    "by hand": lambda: Attention(by_hand),
    "einsum": lambda: Attention(by_einsum),
    "MultiheadAttention": lambda: Ready(False),
    "with weights": lambda: Ready(True),
}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("is_post_norm", [False, True])
@pytest.mark.parametrize("num_layers", [2, 4])
def test_attention_that_is_not_added(attention, is_post_norm, num_layers):
    torch.manual_seed(0)

    def of_layers(*, has_residual):
        make = ATTENTIONS[attention]
        return Encoder([Layer(make(), has_residual, is_post_norm=is_post_norm) for _ in range(num_layers)])

    assert not checked(of_layers(has_residual=True)).findings
    (found,) = missing(checked(of_layers(has_residual=False)))
    assert found.kind is attnwatch.FindingKind.BROKEN_GRADIENT_PATH
    assert found.is_note is (num_layers == 2)  # which may be a readout
    assert found.evidence["layers_without_residual"] == num_layers - 1
    assert "x = x + attention" in found.message


def test_one_layer_of_several_is_a_note():
    torch.manual_seed(0)
    layers = [Layer(Attention(fused), has_residual) for has_residual in (True, True, False, True)]
    (found,) = missing(checked(Encoder(layers)))
    assert found.is_note
    assert found.message.startswith("no residual connection leads around 1 of the 3 self-attention layers")


@pytest.mark.parametrize("attend", [fused, by_hand])
def test_pooling_by_attention_needs_no_residual(attend):
    torch.manual_seed(0)
    layers = [Layer(Attention(attend), has_residual=True) for _ in range(2)]
    assert not missing(checked(Encoder(layers, Pool(Attention(attend)))))


def test_reader_of_an_encoder_needs_no_residual_to_it():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS))
    model = T5ForConditionalGeneration(config).train()
    checkup = attnwatch.check_training(model, {"input_ids": ids, "labels": ids.flip(1)})
    assert not missing(checkup)


def test_many_calls_are_left_out():
    torch.manual_seed(0)
    layers = [Layer(Attention(fused), has_residual=False) for _ in range(2)] * 60
    assert not missing(checked(Encoder(layers)))
