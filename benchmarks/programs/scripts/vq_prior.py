"""Train an autoregressive prior over the codes of a vector quantiser, with rotary positions and grouped queries."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch import TrainingCheckup

SIZE, PATCH, CODES, CLASSES = 20, 4, 32, 5
WIDTH, HEADS, GROUPS, HEAD, DEPTH = 64, 4, 2, 16, 3
LENGTH = (SIZE // PATCH) ** 2
ACCUMULATE, WARMUP, RATE = 2, 100, 2e-3


def pictures(labels: Tensor) -> Tensor:
    """Return a wave for each label, whose direction is that of the class and whose phase is random."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
    angle = (math.pi * labels / CLASSES).view(-1, 1, 1)
    phase = torch.rand(len(labels), 1, 1)
    return torch.sin(2 * math.pi * (1.5 * (angle.cos() * x + angle.sin() * y) + phase))


def patches(images: Tensor) -> Tensor:
    return F.unfold(images[:, None], PATCH, stride=PATCH).transpose(1, 2)


def fit_codebook(rounds: int = 5) -> Tensor:
    """Run a few rounds of k-means over the patches of some pictures."""
    points = patches(pictures(torch.randint(CLASSES, (100,)))).flatten(0, 1)
    codebook = points[torch.randperm(len(points))[:CODES]]
    for _ in range(rounds):
        nearest = torch.cdist(points, codebook).argmin(-1)
        counts = torch.bincount(nearest, minlength=CODES)[:, None]
        sums = torch.zeros_like(codebook).index_add(0, nearest, points)
        codebook = torch.where(counts > 0, sums / counts.clamp(min=1), codebook)
    return codebook


def batches(codebook: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield codes of fresh pictures, in raster order, and their classes."""
    while True:
        labels = torch.randint(CLASSES, (size,))
        codes = torch.cdist(patches(pictures(labels)), codebook).argmin(-1)
        yield codes, labels


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of channels of x (batch, heads, time, channels) by angles that grow with time."""
    half = x.shape[-1] // 2
    rates = 100 ** (-torch.arange(half) / half)
    angles = torch.arange(x.shape[2])[:, None] * rates
    left, right = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.wk = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.wv = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.wo = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = rotate(self.wq(x).view(batch, length, HEADS, HEAD).transpose(1, 2))
        k = rotate(self.wk(x).view(batch, length, GROUPS, HEAD).transpose(1, 2))
        v = self.wv(x).view(batch, length, GROUPS, HEAD).transpose(1, 2)
        k, v = (each.repeat_interleave(HEADS // GROUPS, dim=1) for each in (k, v))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(HEAD)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return self.wo(torch.einsum("bhqk,bhkd->bqhd", weights, v).flatten(2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention = Attention()
        self.gate, self.up = nn.Linear(WIDTH, 128, bias=False), nn.Linear(WIDTH, 128, bias=False)
        self.down = nn.Linear(128, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Prior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label, self.code = nn.Embedding(CLASSES, WIDTH), nn.Embedding(CODES, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, CODES, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return the logits of each code, given the class and the codes before it."""
        x = torch.cat([self.label(labels)[:, None], self.code(codes[:, :-1])], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def loss_of(model: Prior, codes: Tensor, labels: Tensor) -> Tensor:
    logits = model(codes, labels)
    return F.cross_entropy(logits.reshape(-1, CODES), codes.reshape(-1))


@torch.no_grad()
def decay(model: Prior, rate: float) -> None:
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(1 - 0.05 * rate)


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    data = batches(fit_codebook(), 16)
    model = Prior()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step + 1, WARMUP) / WARMUP)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            total = 0.0
            for _ in range(ACCUMULATE):
                codes, labels = next(data)
                with checkup.step(step):
                    loss = loss_of(model, codes, labels) / ACCUMULATE
                    loss.backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay(model, scheduler.get_last_lr()[0])
            scheduler.step()
            optimizer.zero_grad()
            print(f"{step} {total:.3f}")
    return checkup
