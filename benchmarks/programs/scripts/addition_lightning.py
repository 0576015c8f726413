"""Learn the addition of numbers, digits reversed, with a causal nn.TransformerEncoder and Lion under Lightning."""

from collections.abc import Callable, Iterable

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attnwatch import TrainingCheckup
from attnwatch.lightning import AttentionMonitor

DIGITS = 3
PLUS, EQUALS, END, PAD = 10, 11, 12, 13
VOCABULARY = 14


class Lion(torch.optim.Optimizer):
    """Sign of the interpolated momentum, with decoupled weight decay."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                update = momentum.mul(beta1).add(p.grad, alpha=1 - beta1).sign_()
                p.add_(update, alpha=-group["lr"])
                momentum.mul_(beta2).add_(p.grad, alpha=1 - beta2)
        return loss


def encode(first: int, second: int) -> tuple[list[int], list[int]]:
    """Return the tokens of a sum such as 12+9=12, least digit first, and which of them belong to the answer."""
    question = [*digits(first), PLUS, *digits(second), EQUALS]
    answer = [*digits(first + second), END]
    missing = 3 * DIGITS + 4 - len(question) - len(answer)
    tokens = question + answer + [PAD] * missing
    is_answer = [0] * len(question) + [1] * len(answer) + [0] * missing
    return tokens, is_answer


def digits(number: int) -> list[int]:
    return [int(digit) for digit in reversed(str(number))]


def make_sums(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, DIGITS + 1, (count, 2), generator=generator)
    numbers = (torch.rand(count, 2, generator=generator) * 10**lengths).long()
    tokens, is_answer = zip(*(encode(first, second) for first, second in numbers.tolist()), strict=True)
    return TensorDataset(torch.tensor(tokens), torch.tensor(is_answer))


class Adder(L.LightningModule):
    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(1, 32, width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            width,
            nhead=4,
            dim_feedforward=4 * width,
            dropout=0.05,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.tokens(ids) + self.positions[:, :length]
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool, device=ids.device), diagonal=1)
        x = self.layers(x, mask=mask)
        return self.head(self.norm(x))

    def complete(self, question: list[int]) -> list[int]:
        """Return the greedy continuation of a question."""
        ids = torch.tensor([question])
        self.eval()
        with torch.no_grad():
            for _ in range(DIGITS + 2):
                ids = torch.cat([ids, self(ids)[:, -1:].argmax(-1)], dim=1)
        self.train()
        return ids[0, len(question) :].tolist()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        tokens, is_answer = batch
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        mask = is_answer[:, 1:].float()
        logits = self(inputs)
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        loss = (losses * mask).sum() / mask.sum()
        if self.global_step % 25 == 0:
            print(self.global_step, round(loss.item(), 3))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Lion(self.parameters(), lr=5e-4, weight_decay=0.1)


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(7, verbose=False)
    model = Adder()
    loader = DataLoader(make_sums(6000), batch_size=64, shuffle=True, drop_last=True)
    print("before:", model.complete([2, 1, PLUS, 9, EQUALS]))
    monitor = AttentionMonitor(on_finding="ignore", report=False)
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
    trainer.fit(model, loader)
    return monitor.checkup
