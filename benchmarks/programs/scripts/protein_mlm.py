"""Pretrain a small rotary encoder of proteins by masked residues, in Lightning."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import attnwatch.lightning
from attnwatch import TrainingCheckup

PAD, CLS, MASK = 0, 1, 2
RESIDUES = 20
VOCABULARY = 3 + RESIDUES


class Proteins(Dataset):
    """Proteins of a few families: pieces of a common ancestor with some mutations."""

    def __init__(self, size: int, families: int = 5):
        generator = torch.Generator().manual_seed(0)
        ancestors = torch.randint(3, VOCABULARY, (families, 40), generator=generator)
        self.sequences = []
        for _ in range(size):
            family = int(torch.randint(families, (1,), generator=generator))
            length = int(torch.randint(20, 41, (1,), generator=generator))
            residues = ancestors[family, :length].clone()
            mutated = torch.rand(length, generator=generator) < 0.05
            residues[mutated] = torch.randint(3, VOCABULARY, (int(mutated.sum()),), generator=generator)
            self.sequences.append(torch.cat([torch.tensor([CLS]), residues]))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Tensor:
        return self.sequences[index]


def mask_residues(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the batch with masked residues, and the residues to predict (-100 elsewhere)."""
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    labels = ids.clone()
    chosen = (torch.rand(ids.shape) < 0.15) & (ids > CLS)
    ids[chosen] = MASK
    labels[~chosen] = -100
    return ids, labels


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotary_table(length: int, width: int) -> tuple[Tensor, Tensor]:
    rates = 1.0 / 100 ** (torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


class Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.up, self.gate, self.down = nn.Linear(width, 96), nn.Linear(width, 96), nn.Linear(96, width)
        self.dropout = nn.Dropout(0.05)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        states = self.norm1(x)
        q, k, v = self.split(self.query(states)), self.split(self.key(states)), self.split(self.value(states))
        cos, sin = rotary_table(q.shape[2], q.shape[3])
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        states = self.norm2(x)
        return x + self.dropout(self.down(F.silu(self.gate(states)) * self.up(states)))


class ProteinModel(L.LightningModule):
    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        keep = ids != PAD
        for layer in self.layers:
            x = layer(x, keep)
        return self.head(self.norm(x))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        ids, labels = batch
        logits = self(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if self.global_step % 10 == 0:
            print(self.global_step, loss.item())
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=500, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(3, verbose=False)
    loader = DataLoader(Proteins(1500), batch_size=24, shuffle=True, collate_fn=mask_residues)
    monitor = attnwatch.lightning.AttentionMonitor(on_finding="ignore", report=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ProteinModel(), loader)
    return monitor.checkup
