"""Pretrain a byte-level GPT on generated stories, with accumulated gradients and a cosine schedule."""

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch import TrainingCheckup

BATCH_SIZE = 16
ACCUMULATION = 2
PEAK_RATE, LAST_RATE = 2e-3, 1e-5
WARMUP_STEPS, DECAY_STEPS = 20, 600


@dataclass
class Config:
    vocabulary: int = 128
    block: int = 64
    layers: int = 3
    heads: int = 4
    width: int = 64
    dropout: float = 0.1


class CausalSelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.proj(y.transpose(1, 2).contiguous().view(b, t, c))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = CausalSelfAttention(config)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.proj = nn.Linear(4 * config.width, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.ln_1(x)))
        return x + self.drop(self.proj(F.gelu(self.up(self.ln_2(x)))))


class GPT(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.block, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers))
        self.head.weight = self.tokens.weight

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def write_stories(count: int) -> Tensor:
    rng = random.Random(0)
    animals, colours, things = ["fox", "owl", "bear", "mouse"], ["red", "old", "tiny"], ["apple", "river", "lamp"]
    lines = []
    for _ in range(count):
        animal, thing = rng.choice(animals), rng.choice(things)
        lines.append(f'The {rng.choice(colours)} {animal} found a {thing}. "My {thing}!" said the {animal}.\n')
    return torch.tensor(list("".join(lines).encode("ascii")))


def get_batch(data: Tensor, block: int) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(data) - block - 1, (BATCH_SIZE,))
    inputs = torch.stack([data[i : i + block] for i in starts])
    targets = torch.stack([data[i + 1 : i + 1 + block] for i in starts])
    return inputs, targets


def learning_rate(step: int) -> float:
    if step < WARMUP_STEPS:
        return PEAK_RATE * (step + 1) / WARMUP_STEPS
    progress = min(1.0, (step - WARMUP_STEPS) / (DECAY_STEPS - WARMUP_STEPS))
    return LAST_RATE + 0.5 * (PEAK_RATE - LAST_RATE) * (1 + math.cos(math.pi * progress))


def make_optimizer(model: GPT) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(1337)
    config = Config()
    data = write_stories(2000)
    model = GPT(config)
    optimizer = make_optimizer(model)
    model.train()
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            for _ in range(ACCUMULATION):
                inputs, targets = get_batch(data, config.block)
                with checkup.step(step):
                    logits = model(inputs)
                    loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
                    (loss / ACCUMULATION).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 10 == 0:
                print(f"step {step}: loss {loss.item():.3f}")
    return checkup
