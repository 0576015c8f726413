"""Scales of attention that a model computes by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnwatch

VOCABULARY, WIDTH, HEADS = 40, 32, 4
HEAD_DIM = WIDTH // HEADS


class ByHand(nn.Module):
    """Causal attention whose weights are a function of queries and keys [batch, heads, tokens, features]."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = self.logits(q, k).masked_fill(hidden, -torch.inf).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(16, WIDTH)
        self.layers = nn.Sequential(ByHand(logits), ByHand(logits))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        return self.head(self.layers(self.embedding(ids) + self.positions.weight[: ids.shape[1]]))


def next_token(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def matmul(q, k):
    return q @ k.mT


def einsum(q, k):
    return torch.einsum("bhqd,bhkd->bhqk", q, k)


def bmm(q, k):
    return torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).view(*q.shape[:2], q.shape[2], k.shape[2])


def cosines(product, scale):
    return lambda q, k: product(F.normalize(q, dim=-1), F.normalize(k, dim=-1)) * scale


FAULTS = {
    "multiplied by the root of the width": lambda product: lambda q, k: product(q, k) * HEAD_DIM**0.5,
    "divided by the squared width": lambda product: lambda q, k: product(q, k) / WIDTH**2,
    "cosines divided by the root of the width": lambda product: cosines(product, HEAD_DIM**-0.5),
    "cap multiplied where it divides": lambda product: lambda q, k: (product(q, k) * HEAD_DIM**-0.5 * 50).tanh() / 50,
}
SOUND = {
    "divided by the root of the width": lambda product: lambda q, k: product(q, k) / HEAD_DIM**0.5,
    "queries divided before": lambda product: lambda q, k: product(q / HEAD_DIM**0.5, k),
    "cosines times 10": lambda product: cosines(product, 10.0),
    "cap": lambda product: lambda q, k: (product(q, k) * HEAD_DIM**-0.5 / 50).tanh() * 50,
    "vectors of one direction": lambda product: lambda q, k: product(1e-4 * q + 0.1, 1e-4 * k + 0.1) / HEAD_DIM**0.5,
    "only distances count": lambda product: (
        lambda q, k: product(q, k) / 4 - 9 * (torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])).abs()
    ),
    "distances subtracted": lambda product: (
        lambda q, k: (
            product(q, k) / HEAD_DIM**0.5 - (torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])).abs()
        )
    ),
}


def kinds_found(logits):
    torch.manual_seed(0)
    model = Net(logits)
    ids = torch.randint(0, VOCABULARY, (5, 12))
    checkup = attnwatch.check_training(model, ids, optimizers=torch.optim.AdamW(model.parameters()), forward=next_token)
    assert "wrong_attention_scale" not in checkup.skipped
    return {finding.kind.value for finding in checkup.findings}


@pytest.mark.parametrize("product", [matmul, einsum, bmm])
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_scales_are_named(fault, product):
    assert kinds_found(FAULTS[fault](product)) == {"wrong_attention_scale"}


@pytest.mark.parametrize("product", [matmul, einsum, bmm])
@pytest.mark.parametrize("name", SOUND)
def test_sound_scales_are_not(name, product):
    assert not kinds_found(SOUND[name](product))


class OverAxis(ByHand):
    """Bidirectional attention with a softmax over any axis, and dropout that does nothing."""

    def __init__(self, axis, *, is_transposed=False):
        super().__init__(None)
        self.axis, self.is_transposed, self.dropout = axis, is_transposed, nn.Dropout(0.0)

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        logits = k @ q.mT if self.is_transposed else q @ k.mT
        weights = self.dropout((logits / HEAD_DIM**0.5).softmax(self.axis))
        values = weights.mT @ v if self.is_transposed else weights @ v
        return x + self.out(values.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("axis", "is_transposed", "wrong"),
    [(-1, False, None), (3, False, None), (-2, True, None), (-2, False, -2), (2, False, -2), (1, False, -3)],
)
def test_softmax_over_another_axis_than_the_keys(axis, is_transposed, wrong):
    torch.manual_seed(0)
    model = Net(None)
    model.layers = nn.Sequential(*(OverAxis(axis, is_transposed=is_transposed) for _ in range(2)))
    checkup = attnwatch.check_training(model, torch.randint(0, VOCABULARY, (6, 12)), forward=next_token)
    found = [each.message for each in checkup.findings if each.kind.value == "wrong_attention_scale"]
    assert len(found) == (wrong is not None)
    assert all(f"the softmax runs over axis {wrong} of the logits" in message for message in found)
