"""Train a bi-encoder of questions and passages with in-batch negatives, in Lightning."""

import math
import random

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import attnwatch.lightning
from attnwatch import TrainingCheckup

PAD = 0
ENTITIES = range(1, 121)
QUESTION_WORDS = range(121, 160)
PASSAGE_WORDS = range(160, 260)
WIDTH = 64


class Pairs(Dataset):
    """Passages about three entities, and questions that mention two of them."""

    def __init__(self, size: int):
        rng = random.Random(0)
        self.pairs = [self.pair(rng) for _ in range(size)]

    @staticmethod
    def pair(rng: random.Random) -> tuple[list[int], list[int]]:
        entities = rng.sample(ENTITIES, k=3)
        question = rng.sample(entities, k=2) + rng.choices(QUESTION_WORDS, k=rng.randint(2, 6))
        passage = entities + rng.choices(PASSAGE_WORDS, k=rng.randint(6, 20))
        rng.shuffle(question)
        rng.shuffle(passage)
        return question, passage

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        return self.pairs[index]


def padded(texts: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    return {"ids": ids, "mask": ids != PAD}


def collate(pairs: list[tuple[list[int], list[int]]]) -> dict[str, dict[str, Tensor]]:
    questions, passages = zip(*pairs, strict=True)
    return {"question": padded(questions), "passage": padded(passages)}


def sinusoids(length: int, width: int) -> Tensor:
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class TextEncoder(nn.Module):
    def __init__(self, layers: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(260, WIDTH, padding_idx=PAD)
        self.register_buffer("positions", sinusoids(64, WIDTH), persistent=False)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 128, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.projection = nn.Linear(WIDTH, 32)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.embedding(ids) + 0.1 * self.positions[: ids.shape[1]]
        states = self.encoder(states, src_key_padding_mask=~mask)
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.projection(pooled), dim=-1)


class BiEncoder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.question_encoder = TextEncoder()
        self.passage_encoder = TextEncoder()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def training_step(self, batch: dict[str, dict[str, Tensor]], index: int) -> Tensor:
        questions = self.question_encoder(**batch["question"])
        passages = self.passage_encoder(**batch["passage"])
        logits = questions @ passages.T * self.log_scale.exp().clamp(max=100)
        targets = torch.arange(len(logits), device=logits.device)
        loss = F.cross_entropy(logits, targets)
        if index % 20 == 0:
            print(self.global_step, loss.item(), (logits.argmax(1) == targets).float().mean().item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(5, verbose=False)
    loader = DataLoader(Pairs(4000), batch_size=32, shuffle=True, collate_fn=collate, drop_last=True)
    monitor = attnwatch.lightning.AttentionMonitor(on_finding="ignore", report=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(BiEncoder(), loader)
    return monitor.checkup
