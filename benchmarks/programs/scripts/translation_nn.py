"""Translate between two invented languages with nn.Transformer, padded batches and the schedule of the paper."""

import math
import random

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup

PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 3
NOUNS, ADJECTIVES = 20, 12
VOCABULARY = FIRST_WORD + NOUNS + ADJECTIVES
WIDTH, WARMUP = 64, 400


class Phrases(Dataset):
    """Pairs of phrases: the other language has other words, and its adjectives follow their nouns."""

    def __init__(self, count: int, seed: int) -> None:
        rng = random.Random(seed)
        self.pairs = [self._pair(rng) for _ in range(count)]

    @staticmethod
    def _pair(rng: random.Random) -> tuple[list[int], list[int]]:
        source, target = [], []
        for _ in range(rng.randint(1, 5)):
            noun = rng.randrange(NOUNS)
            adjective = rng.randrange(ADJECTIVES)
            source += [FIRST_WORD + NOUNS + adjective, FIRST_WORD + noun]
            target += [FIRST_WORD + (noun * 7 + 3) % NOUNS, FIRST_WORD + NOUNS + (adjective * 5 + 1) % ADJECTIVES]
        return [*source, EOS], [BOS, *target, EOS]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        source, target = self.pairs[index]
        return torch.tensor(source), torch.tensor(target)


def collate(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    sources, targets = zip(*batch, strict=True)
    src = pad_sequence(list(sources), batch_first=True, padding_value=PAD)
    tgt = pad_sequence(list(targets), batch_first=True, padding_value=PAD)
    return src, tgt


class PositionalEncoding(nn.Module):
    def __init__(self, width: int, max_len: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_len)[:, None]
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        pe = torch.zeros(max_len, width)
        pe[:, 0::2] = torch.sin(position * rate)
        pe[:, 1::2] = torch.cos(position * rate)
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe[: x.size(1)])


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.src_embed = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PAD)
        self.tgt_embed = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PAD)
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
        self.generator = nn.Linear(WIDTH, VOCABULARY)
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        src_padding = src == PAD
        tgt_padding = tgt == PAD
        tgt_mask = torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool).triu(diagonal=1)
        states = self.transformer(
            self.position(self.src_embed(src)),
            self.position(self.tgt_embed(tgt)),
            tgt_mask=tgt_mask,
            src_key_padding_mask=src_padding,
            tgt_key_padding_mask=tgt_padding,
            memory_key_padding_mask=src_padding,
        )
        return self.generator(states)


def noam(step: int) -> float:
    step = step + 1
    return WIDTH**-0.5 * min(step**-0.5, step * WARMUP**-1.5)


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    loader = DataLoader(Phrases(4000, seed=0), batch_size=32, shuffle=True, collate_fn=collate, drop_last=True)
    model = Translator()
    model.train()
    criterion = nn.CrossEntropyLoss(ignore_index=PAD, label_smoothing=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, noam)
    step = 0
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        while step < steps:
            for src, tgt in loader:
                tgt_in, tgt_out = tgt[:, :-1], tgt[:, 1:]
                optimizer.zero_grad()
                with checkup.step(step):
                    logits = model(src, tgt_in)
                    loss = criterion(logits.reshape(-1, VOCABULARY), tgt_out.reshape(-1))
                    loss.backward()
                optimizer.step()
                scheduler.step()
                if step % 25 == 0:
                    print(f"{step:5d} {loss.item():.3f}")
                step += 1
                if step == steps:
                    break
    return checkup
