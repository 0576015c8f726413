"""Route support tickets to teams with a small pre-norm encoder whose attention is written by hand."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup

PAD, CLS = 0, 1
TEAMS = 6
VOCABULARY = 200
WIDTH = 64
WARMUP = 40


class Tickets(Dataset):
    """Tickets that mention two requests among other words; the first of them decides about the team."""

    def __init__(self, size: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.texts, self.teams = [], []
        for _ in range(size):
            length = int(torch.randint(8, 25, (1,), generator=generator))
            words = torch.randint(20, VOCABULARY, (length,), generator=generator)
            places = torch.randperm(length, generator=generator)[:2].sort().values
            requests = torch.randperm(TEAMS, generator=generator)[:2]
            words[places] = 10 + requests
            self.texts.append(words)
            self.teams.append(int(requests[0]))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.cat([torch.tensor([CLS]), self.texts[index]]), self.teams[index]


def collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    texts, teams = zip(*examples, strict=True)
    return pad_sequence(texts, batch_first=True, padding_value=PAD), torch.tensor(teams)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, is_pad: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        scores = scores.masked_fill(is_pad[:, None, None, :], -1e9)
        weights = self.dropout(scores.softmax(dim=-1))
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, is_pad: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), is_pad))
        return x + self.dropout(self.mlp(self.norm2(x)))


class TicketRouter(nn.Module):
    def __init__(self, layers: int = 2, heads: int = 4, dropout: float = 0.1):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PAD)
        self.positions = nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, TEAMS)

    def forward(self, ids: Tensor) -> Tensor:
        is_pad = ids == PAD
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, is_pad)
        return self.head(self.norm(x)[:, 0])


def parameter_groups(model: nn.Module) -> list[dict]:
    named = list(model.named_parameters())
    return [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    hits = torch.cat([model(ids).argmax(-1) == teams for ids, teams in loader])
    model.train()
    return hits.float().mean().item()


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(1)
    loader = DataLoader(Tickets(3000, seed=0), batch_size=32, shuffle=True, collate_fn=collate, drop_last=True)
    held_out = DataLoader(Tickets(64, seed=1), batch_size=64, collate_fn=collate)
    model = TicketRouter()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / WARMUP))
    batches = iter(loader)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            if step % len(loader) == 0:
                batches = iter(loader)
            ids, teams = next(batches)
            with checkup.step(step):
                loss = F.cross_entropy(model(ids), teams)
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                print(step, f"loss {loss.item():.3f}, accuracy {accuracy(model, held_out):.2f}")
    return checkup
