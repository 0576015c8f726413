"""Detect coloured rectangles with a small DETR: set matching, auxiliary-free, images padded to one canvas."""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup

CLASSES, QUERIES, WIDTH, CANVAS, STRIDE = 3, 6, 64, 48, 8
Target = dict[str, Tensor]


class Rectangles(Dataset):
    """Images of different sizes with one to three rectangles; boxes are (cx, cy, w, h) as shares of the canvas."""

    def __len__(self) -> int:
        return 1600

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        random = torch.Generator().manual_seed(index)
        height, width = (8 * torch.randint(3, 6, (2,), generator=random)).tolist()
        image = 0.1 * torch.randn(3, height, width, generator=random)
        count = int(torch.randint(1, 4, (), generator=random))
        labels = torch.randint(CLASSES, (count,), generator=random)
        boxes = []
        for label in labels:
            h, w = torch.randint(6, 14, (2,), generator=random).tolist()
            top = int(torch.randint(height - h, (), generator=random))
            left = int(torch.randint(width - w, (), generator=random))
            image[:, top : top + h, left : left + w] = 0.0
            image[label, top : top + h, left : left + w] = 1.0
            boxes.append([left + w / 2, top + h / 2, w, h])
        return image, {"labels": labels, "boxes": torch.tensor(boxes) / CANVAS}


def collate(items: list[tuple[Tensor, Target]]) -> tuple[Tensor, Tensor, list[Target]]:
    images = torch.zeros(len(items), 3, CANVAS, CANVAS)
    padding = torch.ones(len(items), CANVAS, CANVAS, dtype=torch.bool)
    for row, (image, _) in enumerate(items):
        images[row, :, : image.shape[1], : image.shape[2]] = image
        padding[row, : image.shape[1], : image.shape[2]] = False
    return images, padding, [target for _, target in items]


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        q = k = x + position
        x = self.norm1(x + self.attention(q, k, x, key_padding_mask=padding, need_weights=False)[0])
        return self.norm2(x + self.mlp(x))


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(WIDTH, num_heads=4, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, WIDTH))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, query: Tensor, memory: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        q = k = x + query
        x = self.norm1(x + self.self_attention(q, k, x)[0])
        seen, _ = self.cross_attention(x + query, memory + position, memory, key_padding_mask=padding)
        x = self.norm2(x + seen)
        return self.norm3(x + self.mlp(x))


class Detr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, WIDTH, STRIDE, STRIDE), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, kernel_size=1)
        )
        side = CANVAS // STRIDE
        self.transformer = nn.ModuleDict(
            {
                "encoder": nn.ModuleList(EncoderLayer() for _ in range(2)),
                "decoder": nn.ModuleList(DecoderLayer() for _ in range(2)),
            }
        )
        self.rows = nn.Parameter(torch.randn(side, 1, WIDTH // 2) * 0.5)
        self.columns = nn.Parameter(torch.randn(1, side, WIDTH // 2) * 0.5)
        self.queries = nn.Embedding(QUERIES, WIDTH)
        self.class_head = nn.Linear(WIDTH, CLASSES + 1)
        self.box_head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        side = features.shape[-1]
        grid = (self.rows.expand(side, side, -1), self.columns.expand(side, side, -1))
        position = torch.cat(grid, dim=-1).flatten(0, 1)[None]
        padding = padding[:, ::STRIDE, ::STRIDE].flatten(1)
        memory = features.flatten(2).transpose(1, 2)
        for layer in self.transformer["encoder"]:
            memory = layer(memory, position, padding)
        query = self.queries.weight.expand(len(images), -1, -1)
        x = torch.zeros_like(query)
        for layer in self.transformer["decoder"]:
            x = layer(x, query, memory, position, padding)
        return self.class_head(x), self.box_head(x).sigmoid()


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: list[Target]) -> list[tuple[Tensor, Tensor]]:
    pairs = []
    for scores, predicted, target in zip(logits.softmax(-1), boxes, targets, strict=True):
        cost = 5 * torch.cdist(predicted, target["boxes"], p=1) - scores[:, target["labels"]]
        queries, objects = linear_sum_assignment(cost.numpy())
        pairs.append((torch.as_tensor(queries), torch.as_tensor(objects)))
    return pairs


def set_loss(logits: Tensor, boxes: Tensor, targets: list[Target]) -> Tensor:
    pairs = match(logits, boxes, targets)
    classes = torch.full(logits.shape[:2], CLASSES)
    for row, (queries, objects) in enumerate(pairs):
        classes[row, queries] = targets[row]["labels"][objects]
    weight = torch.ones(CLASSES + 1)
    weight[CLASSES] = 0.2
    class_loss = F.cross_entropy(logits.transpose(1, 2), classes, weight=weight)
    predicted = torch.cat([row[queries] for row, (queries, _) in zip(boxes, pairs, strict=True)])
    wanted = torch.cat([each["boxes"][objects] for each, (_, objects) in zip(targets, pairs, strict=True)])
    return class_loss + 5 * F.l1_loss(predicted, wanted)


def parameter_groups(model: Detr) -> list[dict]:
    backbone = [weight for name, weight in model.named_parameters() if "backbone" in name]
    others = [weight for name, weight in model.named_parameters() if "backbone" not in name]
    return [{"params": others}, {"params": backbone, "lr": 2e-4}]


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    model = Detr()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=5e-4, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7)
    loader = DataLoader(Rectangles(), batch_size=16, shuffle=True, collate_fn=collate, drop_last=True)
    step = 0
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        while step < steps:
            for images, padding, targets in loader:
                with checkup.step(step):
                    optimizer.zero_grad()
                    logits, boxes = model(images, padding)
                    loss = set_loss(logits, boxes, targets)
                    loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                print(f"step {step}: {loss.item():.3f}")
                step += 1
                if step == steps:
                    return checkup
            scheduler.step()
    return checkup
