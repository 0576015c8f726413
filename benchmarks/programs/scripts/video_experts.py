"""Tell the direction and colour of a moving thing by a video transformer with divided attention and experts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attnwatch import TrainingCheckup

FRAMES, SIZE, PATCH, WIDTH, HEADS, EXPERTS, COLOURS = 6, 24, 6, 64, 4, 4, 3
SIDE = SIZE // PATCH
MOVES = torch.tensor([[0, 3], [0, -3], [3, 0], [-3, 0]])


def make_clips(count: int) -> TensorDataset:
    """Make clips of a square that crosses the picture, ordered by direction as in folders of classes."""
    directions = torch.arange(count) * len(MOVES) // count
    colours = torch.randint(COLOURS, (count,))
    starts = torch.randint(SIZE - 19, (count, 2)) + 15 * (MOVES[directions] < 0)
    starts = torch.where(MOVES[directions] == 0, torch.randint(SIZE - 4, (count, 2)), starts)
    clips = 0.05 * torch.randn(count, FRAMES, COLOURS, SIZE, SIZE)
    for clip, direction, colour, start in zip(clips, directions, colours, starts, strict=True):
        for time in range(FRAMES):
            row, column = (start + time * MOVES[direction]).tolist()
            clip[time, colour, row : row + 5, column : column + 5] += 1.0
    return TensorDataset(clips, directions, colours)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(rows, length, 3, HEADS, WIDTH // HEADS).transpose(1, 3).unbind(2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, length, WIDTH))


class Experts(nn.Module):
    """A layer of experts, of which each token takes the best one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        chances = self.router(y).softmax(dim=-1)
        weight, choice = chances.max(dim=-1)
        out = torch.zeros_like(y)
        for number, expert in enumerate(self.experts):
            taken = choice == number
            out[taken] = expert(y[taken]) * weight[taken][:, None]
        share = F.one_hot(choice, EXPERTS).float().mean((0, 1))
        return out, EXPERTS * (share * chances.mean((0, 1))).sum()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.over_time, self.over_space, self.experts = SelfAttention(), SelfAttention(), Experts()

    def forward(self, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Take tokens as (batch · frames, patches, width)."""
        patches = x.shape[1]
        x = x.view(batch, FRAMES, patches, WIDTH).transpose(1, 2).reshape(-1, FRAMES, WIDTH)
        x = x + self.over_time(x)
        x = x.view(batch, patches, FRAMES, WIDTH).transpose(1, 2).reshape(-1, patches, WIDTH)
        x = x + self.over_space(x)
        out, balance = self.experts(x)
        return x + out, balance


class VideoTransformer(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(COLOURS, WIDTH, PATCH, PATCH)
        self.space = nn.Parameter(0.5 * torch.randn(1, SIDE**2, WIDTH))
        self.time = nn.Parameter(0.5 * torch.randn(FRAMES, 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.direction, self.colour = nn.Linear(WIDTH, len(MOVES)), nn.Linear(WIDTH, COLOURS)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(clips)
        x = self.patches(clips.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = x + self.space + self.time.repeat(batch, 1, 1)
        balance = torch.zeros(())
        for block in self.blocks:
            x, each = block(x, batch)
            balance = balance + each
        pooled = self.norm(x).reshape(batch, -1, WIDTH).mean(1)
        return self.direction(pooled), self.colour(pooled), balance


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    loader = DataLoader(make_clips(2048), batch_size=32, shuffle=True, drop_last=True)
    model = VideoTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    step = 0
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        while step < steps:
            for clips, directions, colours in loader:
                if step >= steps:
                    break
                with checkup.step(step):
                    direction, colour, balance = model(clips)
                    loss = F.cross_entropy(direction, directions)
                    loss = loss + F.cross_entropy(colour, colours) + 0.01 * balance
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                print(step, f"{loss.item():.3f}")
                step += 1
    return checkup
