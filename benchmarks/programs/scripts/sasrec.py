"""Recommend the next item from a session with a causal transformer and sampled negatives, in a plain loop."""

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup

PAD = 0
ITEMS = 120
LENGTH = 20


class Sessions(Dataset):
    """Sessions of users, who mostly go from an item to one of its three successors."""

    def __init__(self, size: int):
        rng = random.Random(0)
        successors = {item: rng.sample(range(1, ITEMS + 1), k=3) for item in range(1, ITEMS + 1)}
        self.sessions = []
        for _ in range(size):
            items = [rng.randint(1, ITEMS)]
            for _ in range(rng.randint(5, LENGTH)):
                items.append(rng.choice(successors[items[-1]]) if rng.random() < 0.9 else rng.randint(1, ITEMS))
            self.sessions.append(items)

    def __len__(self) -> int:
        return len(self.sessions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the items seen so far, the next item at each position, and one that wasn't next."""
        session = self.sessions[index]
        seen, following = session[:-1], session[1:]
        others = [random.randint(1, ITEMS) for _ in following]
        return left_padded(seen), left_padded(following), left_padded(others)


def left_padded(items: list[int]) -> Tensor:
    return torch.tensor([PAD] * (LENGTH - len(items)) + items)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, blocked: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, normed, attn_mask=blocked, need_weights=False)[0]
        return x + self.feed_forward(self.forward_norm(x))


class SASRec(nn.Module):
    def __init__(self, width: int = 48, heads: int = 2, layers: int = 2, dropout: float = 0.1):
        super().__init__()
        self.heads = heads
        vectors = torch.randn(ITEMS + 1, width) * width**-0.5
        vectors[PAD] = 0
        self.items = nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(LENGTH, width) * 0.05)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def blocked(self, items: Tensor) -> Tensor:
        """Return what each position of each head must not see: what follows, and padding other than itself."""
        length = items.shape[1]
        future = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
        itself = torch.eye(length, dtype=torch.bool)
        blocked = (future | (items == PAD)[:, None, :]) & ~itself
        return blocked.repeat_interleave(self.heads, dim=0)

    def forward(self, items: Tensor) -> Tensor:
        x = self.items(items) * self.items.embedding_dim**0.5
        x = self.dropout(x + self.positions)
        blocked = self.blocked(items)
        for block in self.blocks:
            x = block(x, blocked)
        return self.norm(x)


def ranking_loss(states: Tensor, following: Tensor, others: Tensor, items: nn.Embedding) -> Tensor:
    positive = (states * items(following)).sum(-1)
    negative = (states * items(others)).sum(-1)
    losses = F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive), reduction="none")
    losses = losses + F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative), reduction="none")
    is_real = following != PAD
    return losses[is_real].mean()


def train(steps: int) -> TrainingCheckup:
    random.seed(6)
    torch.manual_seed(6)
    loader = DataLoader(Sessions(2400), batch_size=48, shuffle=True, drop_last=True)
    model = SASRec()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    step = 0
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        while step < steps:
            for seen, following, others in loader:
                if step == steps:
                    break
                optimizer.zero_grad()
                with checkup.step(step):
                    states = model(seen)
                    loss = ranking_loss(states, following, others, model.items)
                    loss.backward()
                optimizer.step()
                if step % 20 == 0:
                    print(f"{step:4} {loss.item():.4f}")
                step += 1
    return checkup
