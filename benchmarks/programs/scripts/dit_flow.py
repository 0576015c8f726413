"""Generate small pictures of four classes with a diffusion transformer (adaLN-zero), trained by flow matching."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch import TrainingCheckup

SIZE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 16, 4, 64, 4, 3, 4
SIDE = SIZE // PATCH


def sample_images(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw stripes, upright stripes, discs and rings with random places and widths, in -1 … 1."""
    labels = torch.randint(CLASSES, (count,), generator=random)
    axis = torch.linspace(-1, 1, SIZE)
    y, x = axis[:, None].expand(SIZE, SIZE), axis.expand(SIZE, SIZE)
    shift, rate = torch.rand(count, 1, 1, generator=random), 1 + torch.rand(count, 1, 1, generator=random)
    radius = ((x - shift + 0.5) ** 2 + (y + shift - 0.5) ** 2).sqrt()
    kinds = torch.stack(
        [
            torch.sin(math.pi * (2 * rate * y + 2 * shift)),
            torch.sin(math.pi * (2 * rate * x + 2 * shift)),
            torch.tanh(6 * (0.4 * rate - radius)),
            torch.tanh(8 * (0.2 - (radius - 0.4 * rate).abs())),
        ]
    )
    return kinds[labels, torch.arange(count)][:, None], labels


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.scale = (WIDTH // HEADS) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.attn = Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        hidden = F.gelu(self.fc1(modulate(self.norm2(x), shift2, scale2)), approximate="tanh")
        return x + gate2 * self.fc2(hidden)


class DiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.register_buffer("position", grid_sinusoids())
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.label = nn.Embedding(CLASSES + 1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        self.final = nn.Linear(WIDTH, PATCH * PATCH)
        self.initialise()

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.label.weight, std=0.02)
        zeros = [self.final, self.modulation[1], *(block.modulation[1] for block in self.blocks)]
        for layer in zeros:
            nn.init.zeros_(layer.weight)

    def forward(self, noisy: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        x = self.patches(noisy).flatten(2).transpose(1, 2) + self.position
        condition = self.time(sinusoids(1000 * time, WIDTH)) + self.label(labels)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        x = self.final(modulate(self.norm(x), shift, scale))
        x = x.view(-1, SIDE, SIDE, PATCH, PATCH).transpose(2, 3)
        return x.reshape(-1, 1, SIZE, SIZE)


def sinusoids(values: Tensor, width: int) -> Tensor:
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = values[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_sinusoids() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.cat([sinusoids(rows.flatten(), WIDTH // 2), sinusoids(columns.flatten(), WIDTH // 2)], dim=-1)


def flow_loss(model: DiT, images: Tensor, labels: Tensor) -> Tensor:
    noise, time = torch.randn_like(images), torch.rand(len(images))
    labels = torch.where(torch.rand(len(labels)) < 0.1, CLASSES, labels)
    t = time.view(-1, 1, 1, 1)
    velocity = model((1 - t) * images + t * noise, time, labels)
    return F.mse_loss(velocity.float(), noise - images)


@torch.no_grad()
def update_average(average: DiT, model: DiT, decay: float = 0.99) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    model = DiT()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            images, labels = sample_images(32, random)
            with checkup.step(step), torch.autocast("cpu", dtype=torch.bfloat16):
                loss = flow_loss(model, images, labels)
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            update_average(average, model)
            print(f"{step:4d} {loss.item():.4f}")
    return checkup
