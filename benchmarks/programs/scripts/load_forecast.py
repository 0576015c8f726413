"""Forecast the load of power meters half a day ahead with nn.Transformer, in Lightning."""

import math

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import attnwatch.lightning
from attnwatch import TrainingCheckup

HISTORY, HORIZON = 48, 12
WIDTH = 64


class Meters(Dataset):
    """Hourly windows of meters with a daily cycle, an evening peak and noise; some meters are out of order."""

    def __init__(self, size: int):
        generator = torch.Generator().manual_seed(0)
        hours = torch.randint(24, (size, 1), generator=generator) + torch.arange(HISTORY + HORIZON)
        size_of = torch.rand(size, 1, generator=generator) * 50 + 5
        peak = torch.randint(16, 22, (size, 1), generator=generator)
        day = torch.sin(2 * torch.pi * hours / 24)
        evening = torch.exp(-(((hours % 24) - peak) ** 2) / 4.0)
        noise = 0.1 * torch.randn(hours.shape, generator=generator)
        self.loads = size_of * (2 + day + 2 * evening + noise)
        is_out = torch.rand(size, 1, generator=generator) < 0.03
        self.loads = torch.where(is_out, torch.zeros(()), self.loads)

    def __len__(self) -> int:
        return len(self.loads)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.loads[index, :HISTORY], self.loads[index, HISTORY:]


class PositionalEncoding(nn.Module):
    def __init__(self, width: int, dropout: float = 0.1, max_length: int = 200):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_length).unsqueeze(1)
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        table = torch.zeros(max_length, 1, width)
        table[:, 0, 0::2] = torch.sin(position * rates)
        table[:, 0, 1::2] = torch.cos(position * rates)
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table[: x.size(1)].transpose(0, 1)
        return self.dropout(x)


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.history_in = nn.Linear(1, WIDTH)
        self.target_in = nn.Linear(1, WIDTH)
        self.position = PositionalEncoding(WIDTH)
        self.transformer = nn.Transformer(
            d_model=WIDTH,
            nhead=4,
            num_encoder_layers=2,
            num_decoder_layers=2,
            dim_feedforward=128,
            dropout=0.1,
            batch_first=True,
        )
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, history: Tensor, so_far: Tensor) -> Tensor:
        """Return the next load after each of `so_far`."""
        source = self.position(self.history_in(history.unsqueeze(-1)))
        target = self.position(self.target_in(so_far.unsqueeze(-1)))
        causal = nn.Transformer.generate_square_subsequent_mask(so_far.size(1))
        states = self.transformer(source, target, tgt_mask=causal)
        return self.out(states).squeeze(-1)


class LoadModule(L.LightningModule):
    def __init__(self, warmup: int = 50):
        super().__init__()
        self.model = Forecaster()
        self.loss = nn.MSELoss()
        self.warmup = warmup

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        history, future = batch
        mean = history.mean(dim=1, keepdim=True)
        scale = history.std(dim=1, keepdim=True) + 1e-5
        history, future = (history - mean) / scale, (future - mean) / scale
        so_far = torch.cat([history[:, -1:], future[:, :-1]], dim=1)
        loss = self.loss(self.model(history, so_far), future)
        if index % 10 == 0:
            print(self.global_step, loss.item())
        return loss

    def noam(self, step: int) -> float:
        step += 1
        return WIDTH**-0.5 * min(step**-0.5, step * self.warmup**-1.5)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1, betas=(0.9, 0.98), eps=1e-9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.noam)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(7, verbose=False)
    loader = DataLoader(Meters(3200), batch_size=32, shuffle=True)
    monitor = attnwatch.lightning.AttentionMonitor(on_finding="ignore", report=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[monitor],
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LoadModule(), train_dataloaders=loader)
    return monitor.checkup
