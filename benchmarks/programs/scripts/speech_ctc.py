"""Recognise strings of sounds in padded spectrograms with a small Conformer and CTC, in Lightning."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup
from attnwatch.lightning import AttentionMonitor

BLANK, SOUNDS, MELS, WIDTH, WARMUP, STRIDE = 0, 8, 16, 64, 300, 2


class Utterances(Dataset):
    """Each sound is a spectral pattern that lasts a few frames; between sounds there may be silence."""

    def __init__(self, size: int = 4000) -> None:
        self.size = size
        self.patterns = 2 * torch.randn(SOUNDS + 1, MELS, generator=torch.Generator().manual_seed(7))
        self.patterns[BLANK] = 0.0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        count = int(torch.randint(3, 9, (), generator=random))
        transcript = torch.randint(1, SOUNDS + 1, (count,), generator=random)
        spoken = torch.stack([transcript, torch.full_like(transcript, BLANK)], dim=1).flatten()
        durations = torch.randint(4, 8, (2 * count,), generator=random)
        durations[1::2] -= 4
        frames = self.patterns[spoken].repeat_interleave(durations, dim=0)
        return frames + 0.5 * torch.randn(frames.shape, generator=random), transcript


def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    frames, transcripts = zip(*items, strict=True)
    return {
        "frames": nn.utils.rnn.pad_sequence(list(frames), batch_first=True),
        "lengths": torch.tensor([len(each) for each in frames]),
        "targets": torch.cat(transcripts),
        "target_lengths": torch.tensor([len(each) for each in transcripts]),
    }


def padding_mask(lengths: Tensor, longest: int) -> Tensor:
    """Return True at padding."""
    return torch.arange(longest) >= lengths[:, None]


class FeedForward(nn.Sequential):
    def __init__(self, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128), nn.SiLU(), nn.Dropout(dropout), nn.Linear(128, WIDTH)
        )


class ConvolutionModule(nn.Module):
    def __init__(self, kernel: int = 5) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.expand, self.project = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, kernel, padding=kernel // 2, groups=WIDTH)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = F.glu(self.expand(self.norm1(x)), dim=-1)
        x = x.masked_fill(padding[..., None], 0.0)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.project(F.silu(self.norm2(x)))


class ConformerBlock(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.last = FeedForward(dropout), FeedForward(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, dropout=dropout, batch_first=True)
        self.convolution = ConvolutionModule()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = x + 0.5 * self.dropout(self.first(x))
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0])
        x = x + self.dropout(self.convolution(x, padding))
        return self.norm2(x + 0.5 * self.dropout(self.last(x)))


class Conformer(nn.Module):
    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.subsample = nn.Conv1d(MELS, WIDTH, 3, stride=STRIDE, padding=1)
        self.blocks = nn.ModuleList(ConformerBlock(dropout) for _ in range(2))

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.masked_fill(padding_mask(lengths, frames.shape[1])[..., None], 0.0)
        x = F.gelu(self.subsample(frames.transpose(1, 2)).transpose(1, 2))
        out_lengths = (lengths + STRIDE - 1) // STRIDE
        padding = padding_mask(out_lengths, x.shape[1])
        for block in self.blocks:
            x = block(x, padding)
        return x, out_lengths


class Recogniser(L.LightningModule):
    def __init__(self, rate: float = 3e-3) -> None:
        super().__init__()
        self.rate = rate
        self.encoder = Conformer()
        self.head = nn.Linear(WIDTH, SOUNDS + 1)
        self.criterion = nn.CTCLoss(blank=BLANK, reduction="mean", zero_infinity=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states, out_lengths = self.encoder(frames, lengths)
        return self.head(states), out_lengths

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        logits, lengths = self(batch["frames"], batch["lengths"])
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        loss = self.criterion(log_probs, batch["targets"], lengths, batch["target_lengths"])
        self.print(index, round(loss.item(), 3))
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(0, verbose=False)
    loader = DataLoader(Utterances(), batch_size=16, shuffle=True, collate_fn=collate)
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=5.0,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Recogniser(), loader)
    return monitor.checkup
