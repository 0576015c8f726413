"""Learn features of pictures without labels by momentum contrast (MoCo v3), in Lightning with manual optimisation."""

import copy

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup
from attnwatch.lightning import AttentionMonitor

SIZE, PATCH, WIDTH, HEADS, FEATURES, TEMPERATURE = 20, 4, 64, 4, 32, 0.2


class TwoViews(Dataset):
    """Two random views of each picture, which holds four objects, each of one of several forms and colours."""

    def __len__(self) -> int:
        return 8000

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        forms = torch.stack([torch.eye(8), torch.ones(8, 8), torch.eye(8).flip(0), torch.ones(8, 8).triu()])
        image = torch.zeros(3, SIZE, SIZE)
        for place, form in enumerate(torch.randint(4, (4,), generator=random)):
            row, column = 10 * (place // 2) + 1, 10 * (place % 2) + 1
            colour = (torch.rand(3, 1, 1, generator=random) > 0.5).float()
            image[:, row : row + 8, column : column + 8] = forms[form] * colour
        return self.view(image), self.view(image)

    def view(self, image: Tensor) -> Tensor:
        """Shift, dim, and add noise."""
        shift = torch.randint(-1, 2, (2,)).tolist()
        return image.roll(shift, dims=(1, 2)) * (0.7 + 0.6 * torch.rand(3, 1, 1)) + 0.1 * torch.randn(image.shape)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = [
            part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.to_qkv(self.norm1(x)).chunk(3, dim=-1)
        ]
        seen = F.scaled_dot_product_attention(*heads, is_causal=False)
        x = x + self.to_out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(0.2 * torch.randn(1, 1 + (SIZE // PATCH) ** 2, WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(depth)))
        self.norm = nn.LayerNorm(WIDTH)
        self.projector = perceptron(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.projector(self.norm(self.layers(x))[:, 0])


def perceptron(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, FEATURES))


def contrast(queries: Tensor, keys: Tensor) -> Tensor:
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(logits)))


class MoCo(L.LightningModule):
    def __init__(self, momentum: float = 0.99) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.momentum = momentum
        self.base_encoder = VisionTransformer()
        self.predictor = perceptron(FEATURES)
        self.momentum_encoder = copy.deepcopy(self.base_encoder)
        self.momentum_encoder.requires_grad_(False)

    def training_step(self, views: list[Tensor], index: int) -> None:
        images = torch.cat(views)
        first, second = self.predictor(self.base_encoder(images)).chunk(2)
        with torch.no_grad():
            self.update_momentum_encoder()
            key_first, key_second = self.momentum_encoder(images).chunk(2)
        loss = (contrast(first, key_second) + contrast(second, key_first)) / 2
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=3.0, gradient_clip_algorithm="norm")
        optimizer.step()
        scheduler.step()
        self.print(index, round(loss.item(), 3))

    @torch.no_grad()
    def update_momentum_encoder(self) -> None:
        pairs = zip(self.momentum_encoder.parameters(), self.base_encoder.parameters(), strict=True)
        for old, new in pairs:
            old.mul_(self.momentum).add_(new, alpha=1 - self.momentum)

    def configure_optimizers(self) -> tuple[list, list]:
        weights = [*self.base_encoder.parameters(), *self.predictor.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=5e-4, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5000)]


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(0, verbose=False)
    loader = DataLoader(TwoViews(), batch_size=32, shuffle=True, drop_last=True)
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(MoCo(), loader)
    return monitor.checkup
