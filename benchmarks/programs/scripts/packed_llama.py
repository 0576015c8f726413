"""Train a small Llama-like model written by hand on packed documents of facts and questions, in bfloat16 autocast."""

import itertools
import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch import TrainingCheckup

KEYS, VALUES = range(4, 24), range(24, 44)
BOS, ASK, EOS = 1, 2, 3
VOCABULARY, WIDTH, HEADS, KV_HEADS, LENGTH = 44, 64, 4, 2, 48


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.rms_norm(x.float(), (x.shape[-1],), eps=1e-6).type_as(x)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    angles = positions[:, None, :, None] * frequencies
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.wq = nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk = nn.Linear(WIDTH, KV_HEADS * self.head_dim, bias=False)
        self.wv = nn.Linear(WIDTH, KV_HEADS * self.head_dim, bias=False)
        self.wo = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k = self.wk(x).unflatten(-1, (KV_HEADS, -1)).transpose(1, 2)
        v = self.wv(x).unflatten(-1, (KV_HEADS, -1)).transpose(1, 2)
        q, k = rotate(q, positions), rotate(k, positions)
        k = k.repeat_interleave(HEADS // KV_HEADS, dim=1)
        v = v.repeat_interleave(HEADS // KV_HEADS, dim=1)
        scores = (q @ k.transpose(-2, -1)) / self.head_dim**0.5
        scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
        weights = scores.float().softmax(dim=-1).type_as(v)
        return self.wo((weights @ v).transpose(1, 2).reshape(b, t, WIDTH))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RMSNorm(WIDTH), RMSNorm(WIDTH)
        self.attention = Attention()
        self.gate, self.up = nn.Linear(WIDTH, 160, bias=False), nn.Linear(WIDTH, 160, bias=False)
        self.down = nn.Linear(160, WIDTH, bias=False)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), positions, allowed)
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(depth)])
        self.norm = RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor, documents: Tensor, positions: Tensor) -> Tensor:
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        allowed = causal & (documents[:, :, None] == documents[:, None, :])
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, positions, allowed)
        return self.output(self.norm(x))


def write_document(rng: random.Random) -> list[int]:
    keys = rng.sample(KEYS, rng.randint(2, 4))
    values = [rng.choice(VALUES) for _ in keys]
    questions = [rng.randrange(len(keys)) for _ in range(rng.randint(2, 4))]
    facts = [token for pair in zip(keys, values, strict=True) for token in pair]
    answers = [token for i in questions for token in (ASK, keys[i], values[i])]
    return [BOS, *facts, *answers, EOS]


def packed_rows(seed: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield tokens, document numbers and positions within documents, of rows that documents fill without gaps."""
    rng = random.Random(seed)
    ids, documents, positions = [], [], []
    for number in itertools.count():
        document = write_document(rng)
        ids += document
        documents += [number] * len(document)
        positions += range(len(document))
        if len(ids) > LENGTH:
            yield ids[: LENGTH + 1], documents[: LENGTH + 1], positions[: LENGTH + 1]
            ids, documents, positions = [], [], []


def batches(size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    rows = packed_rows(seed)
    while True:
        ids, documents, positions = (torch.tensor(part) for part in zip(*itertools.islice(rows, size), strict=True))
        targets = ids[:, 1:].clone()
        targets[documents[:, 1:] != documents[:, :-1]] = -100
        yield ids[:, :-1], documents[:, :-1], positions[:, :-1], targets


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    model = Llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=max(steps, 400), pct_start=0.1)
    stream = batches(32, seed=0)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            ids, documents, positions, targets = next(stream)
            optimizer.zero_grad()
            with checkup.step(step):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits = model(ids, documents, positions)
                loss = F.cross_entropy(logits.float().transpose(1, 2), targets)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            if step % 20 == 0:
                print(step, round(loss.item(), 4))
    return checkup
