"""Describe small pictures of two coloured things in words, by a ViT encoder and a decoder with cross-attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup

WORDS = ["<pad>", "<s>", "</s>", "a", "red", "green", "blue", "square", "cross", "above", "and"]
PAD, BOS, EOS = 0, 1, 2
SIZE, PATCH, WIDTH, HEADS, WARMUP = 24, 4, 64, 4, 100


def sentence(things: list[tuple[str, str]]) -> Tensor:
    words = ["<s>"]
    for number, (colour, shape) in enumerate(things):
        words += ["above", "a", colour, shape] if number else ["a", colour, shape]
    return torch.tensor([WORDS.index(word) for word in [*words, "</s>"]])


class Scenes(Dataset):
    """One thing anywhere, or one above another."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        image = 0.1 * torch.randn(3, SIZE, SIZE, generator=random)
        count = int(torch.randint(1, 3, (), generator=random))
        things = []
        for place in range(count):
            colour, is_cross = torch.randint(3, (), generator=random), torch.rand((), generator=random) < 0.5
            top = 12 * place + int(torch.randint(5, (), generator=random))
            left = int(torch.randint(17, (), generator=random))
            shape = torch.ones(8, 8)
            if is_cross:
                shape = (torch.eye(8) + torch.eye(8).flip(0)).clamp(max=1)
            image[colour, top : top + 8, left : left + 8] += shape
            things.append((WORDS[4 + int(colour)], "cross" if is_cross else "square"))
        return image, sentence(things)


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images = torch.stack([image for image, _ in items])
    captions = nn.utils.rnn.pad_sequence([caption for _, caption in items], batch_first=True, padding_value=PAD)
    return images, captions


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn((SIZE // PATCH) ** 2, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def sinusoids(length: int) -> Tensor:
    rates = torch.exp(-math.log(10_000) * torch.arange(0, WIDTH, 2) / WIDTH)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Captioner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.embed = nn.Embedding(len(WORDS), WIDTH, padding_idx=PAD)
        nn.init.normal_(self.embed.weight, std=0.02)
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, len(WORDS), bias=False)
        self.head.weight = self.embed.weight
        self.dropout = nn.Dropout(0.1)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        memory = self.encoder(images)
        length = words.shape[1]
        x = self.dropout(self.embed(words) * math.sqrt(WIDTH) + sinusoids(length))
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        padding = torch.zeros(words.shape).masked_fill(words == PAD, float("-inf"))
        return self.head(self.decoder(x, memory, tgt_mask=causal, tgt_key_padding_mask=padding))


def noam(step: int) -> float:
    return WIDTH**-0.5 * min((step + 1) ** -0.5, (step + 1) * WARMUP**-1.5)


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    model = Captioner()
    criterion = nn.CrossEntropyLoss(ignore_index=PAD, label_smoothing=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, betas=(0.9, 0.98), eps=1e-9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, noam)
    loader = DataLoader(Scenes(32 * steps), batch_size=32, shuffle=True, collate_fn=collate)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step, (images, captions) in enumerate(loader):
            optimizer.zero_grad(set_to_none=True)
            with checkup.step(step):
                logits = model(images, captions[:, :-1])
                targets = captions[:, 1:]
                loss = criterion(logits.flatten(0, 1), targets.flatten())
                loss.backward()
            optimizer.step()
            scheduler.step()
            print(step, round(loss.item(), 3))
    return checkup
