"""Predict clicks on advertisements from a table with a feature-tokenizer transformer and averaged weights."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attnwatch import TrainingCheckup

SIZES = [8, 12, 5, 30, 4]  # of the categorical columns
NUMBERS = 4
WEIGHT_DECAY = 0.1
AVERAGING = 0.99


def impressions(rows: int) -> TensorDataset:
    """Return columns and clicks: about one impression in five is clicked, in the order of the log."""
    generator = torch.Generator().manual_seed(0)
    categories = torch.stack([torch.randint(size, (rows,), generator=generator) for size in SIZES], dim=1)
    numbers = torch.randn(rows, NUMBERS, generator=generator) * torch.tensor([1.0, 5.0, 0.2, 30.0])
    tastes = [2 * torch.randn(size, generator=generator) for size in SIZES]
    score = sum(taste[categories[:, column]] for column, taste in enumerate(tastes))
    score = score + 1.5 * numbers[:, 0] - 0.4 * numbers[:, 1] * (categories[:, 4] == 1)
    clicked = score > score.quantile(0.8)
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    return TensorDataset(categories, numbers, clicked.float())


class FeatureTokenizer(nn.Module):
    """One token per column, and one more at the front that collects them."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("offsets", torch.tensor([0, *SIZES[:-1]]).cumsum(0))
        self.categories = nn.Embedding(sum(SIZES), width)
        self.weight = nn.Parameter(torch.randn(NUMBERS, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(NUMBERS + len(SIZES), width))
        self.collector = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        nn.init.normal_(self.categories.weight, std=width**-0.5)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        named = self.categories(categories + self.offsets)
        measured = numbers[:, :, None] * self.weight
        tokens = torch.cat([measured, named], dim=1) + self.bias
        return torch.cat([self.collector.expand(len(tokens), -1, -1), tokens], dim=1)


class ClickModel(nn.Module):
    def __init__(self, width: int = 32, layers: int = 3):
        super().__init__()
        self.tokenizer = FeatureTokenizer(width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=64, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(width, 1))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        states = self.encoder(self.tokenizer(categories, numbers))
        return self.head(states[:, 0]).squeeze(-1)


@torch.no_grad()
def decay_weights(model: nn.Module, rate: float) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "tokenizer" not in name:
            parameter.mul_(1 - rate * WEIGHT_DECAY)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module) -> None:
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - AVERAGING)


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(8)
    data = impressions(6000)
    loader = DataLoader(data, batch_size=64, shuffle=True)
    model = ClickModel()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    criterion = nn.BCEWithLogitsLoss()
    batches = iter(loader)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            try:
                categories, numbers, clicked = next(batches)
            except StopIteration:
                batches = iter(loader)
                categories, numbers, clicked = next(batches)
            with checkup.step(step):
                optimizer.zero_grad()
                logits = model(categories, numbers)
                loss = criterion(logits, clicked)
                loss.backward()
            optimizer.step()
            decay_weights(model, rate=3e-4)
            update_average(average, model)
            if step % 20 == 0:
                print(step, f"{loss.item():.4f}")
    return checkup
