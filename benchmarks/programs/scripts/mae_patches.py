"""Pretrain a small ViT as a masked autoencoder on textures, in the transformers Trainer."""

import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from attnwatch import TrainingCheckup
from attnwatch.transformers import AttentionMonitor

SIZE, PATCH, WIDTH, DECODER, HEADS = 24, 4, 64, 48, 4
PATCHES = (SIZE // PATCH) ** 2


class Textures(Dataset):
    """Pictures of 8-bit pixels, dark at the bottom: a slanted wave whose colour changes from left to right."""

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(index)
        slant, rate, phase, *colours = torch.rand(9, generator=random).tolist()
        y, x = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
        wave = 0.8 + 0.2 * torch.sin(6.28 * ((0.5 + rate) * (slant * x + (1 - slant) * y) + phase))
        left, right = torch.tensor(colours).view(2, 3, 1, 1)
        pixels = (255 * (1 - 0.8 * y) * wave * (left * (1 - x) + right * x)).to(torch.uint8)
        image = pixels / 255
        return {"pixel_values": (image - 0.5) / 0.25}


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.1)
        nn.init.zeros_(module.bias)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def patchify(images: Tensor) -> Tensor:
    side = SIZE // PATCH
    x = images.reshape(-1, 3, side, PATCH, side, PATCH)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(len(images), PATCHES, -1)


def gather(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class MaskedAutoencoder(nn.Module):
    def __init__(self, mask_ratio: float = 0.75) -> None:
        super().__init__()
        self.kept = int(PATCHES * (1 - mask_ratio))
        self.embed = nn.Linear(3 * PATCH**2, WIDTH)
        self.position = nn.Parameter(torch.empty(PATCHES, WIDTH))
        self.encoder = nn.ModuleList([Block(WIDTH) for _ in range(3)])
        self.norm = nn.LayerNorm(WIDTH)
        self.bridge = nn.Linear(WIDTH, DECODER)
        self.mask_token = nn.Parameter(torch.zeros(DECODER))
        self.decoder_position = nn.Parameter(torch.empty(PATCHES, DECODER))
        self.decoder = nn.ModuleList([Block(DECODER) for _ in range(1)])
        self.decoder_norm = nn.LayerNorm(DECODER)
        self.pixels = nn.Linear(DECODER, 3 * PATCH**2)
        self.apply(initialise)
        nn.init.normal_(self.position, std=0.1)
        nn.init.normal_(self.decoder_position, std=0.1)

    def encode(self, patches: Tensor, keep: Tensor) -> Tensor:
        x = gather(self.embed(patches) + self.position, keep)
        for block in self.encoder:
            x = block(x)
        return self.norm(x)

    def decode(self, x: Tensor, restore: Tensor) -> Tensor:
        x = self.bridge(x)
        hidden = self.mask_token.expand(len(x), PATCHES - self.kept, -1)
        x = gather(torch.cat([x, hidden], dim=1), restore)
        x = x + self.decoder_position
        for block in self.decoder:
            x = block(x)
        return self.pixels(self.decoder_norm(x))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        patches = patchify(pixel_values)
        shuffle = torch.rand(patches.shape[:2], device=patches.device).argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        is_masked = restore >= self.kept
        predicted = self.decode(self.encode(patches, shuffle[:, : self.kept]), restore)
        error = (predicted - patches).square().mean(-1)
        return {"loss": (error * is_masked).sum() / is_masked.sum(), "predicted": predicted}


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=1.5e-3,
            weight_decay=0.05,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            logging_steps=10,
            seed=0,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(MaskedAutoencoder(), arguments, train_dataset=Textures(), callbacks=[monitor])
        trainer.train()
    return monitor.checkup
