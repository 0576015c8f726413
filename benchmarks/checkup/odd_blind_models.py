"""Sound models that are not usual and that no check was tuned on."""

from functools import partial

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from benchmarks.checkup import changes, data, nets
from benchmarks.checkup.architectures import SentenceEncoder, bert, class_loss, contrast, image_loss, pair_loss
from benchmarks.checkup.data import Batch
from benchmarks.checkup.nets import CLASSES, FEATURES, WIDTH, Attention, Net, mean_of_real
from benchmarks.checkup.odd_models import series
from benchmarks.checkup.own_models import Features
from benchmarks.checkup.scripts import Script


class Modulated(nn.Module):
    """Block that a condition shifts, scales and gates, by gates that start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, states: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        states = states + gate1 * self.attention(self.norm1(states) * (1 + scale1) + shift1, None, False)
        return states + gate2 * self.mlp(self.norm2(states) * (1 + scale2) + shift2)


class Diffusion(nn.Module):
    """Denoiser of series, whose blocks know how much noise there is, and whose output starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.times = nn.Linear(FEATURES, WIDTH), nn.Linear(1, WIDTH)
        self.positions = nn.Parameter(torch.randn(1, nets.TOKENS, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Modulated() for _ in range(2))
        self.head = nn.Linear(WIDTH, FEATURES)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, values: Tensor, shares: Tensor) -> Tensor:
        states, condition = self.projection(values) + self.positions, self.times(shares)
        for block in self.blocks:
            states = block(states, condition)
        return self.head(states)


def _denoising(model: nn.Module, batch: Batch) -> Tensor:
    noise, shares = torch.randn_like(batch["values"]), torch.rand(len(batch["values"]), 1)
    share = shares[:, :, None]
    return F.mse_loss(model(batch["values"] * (1 - share) + noise * share, shares), noise)


class AttentionPooled(nn.Module):
    """Classifier that reads the tokens by a query that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Net(is_causal=False)
        self.encoder.head = nn.Identity()
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.reading = nn.MultiheadAttention(WIDTH, nets.HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids, attention_mask)
        query = self.query.expand(len(states), -1, -1)
        read, _ = self.reading(query, states, states, key_padding_mask=attention_mask == 0, need_weights=False)
        return self.head(read[:, 0])


class Adversarial(nn.Module):
    """Classifier whose states are to hide the length of the text, from a head behind a gradient reversal."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Net(is_causal=False)
        self.encoder.head = nn.Identity()
        self.head, self.critic = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states = mean_of_real(self.encoder(input_ids, attention_mask), attention_mask)
        return self.head(states), self.critic(changes.with_gradient_times(-0.1)(states))


def _adversarial_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits, guesses = model(batch["input_ids"], batch["attention_mask"])
    is_long = (batch["attention_mask"].sum(1) > nets.TOKENS - 5).long()
    return F.cross_entropy(logits, batch["labels"]) + F.cross_entropy(guesses, is_long)


class TwoViews(nn.Module):
    """Siamese nets: a predictor of one view learns the other view, which has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SentenceEncoder(bert("Model", add_pooling_layer=False))
        self.predictor = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        first, second = self.encoder(input_ids, attention_mask).chunk(2)
        return contrast(self.predictor(first), second.detach()) + contrast(self.predictor(second), first.detach())


def _frozen_batch_norm(model: nn.Module, optimizers: object, step: int) -> None:
    model.batch_norm.eval().requires_grad_(False)


def _swin() -> nn.Module:
    sizes = {"image_size": data.IMAGE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
    return hf.Swinv2ForImageClassification(hf.Swinv2Config(**sizes, window_size=4, num_labels=CLASSES))


def _mean_squared_to_one(model: nn.Module, batch: Batch) -> Tensor:
    """Regress cosines of pairs to 1, and of others to 0."""
    first, second = F.normalize(model(**batch), dim=-1).chunk(2)
    return F.mse_loss(first @ second.T, torch.eye(len(first)))


_TEXTS = data.classified_texts()
_WITH_POOLER = partial(SentenceEncoder, bert("Model"))

BLIND_MODELS: tuple[tuple[str, str, Script], ...] = (
    ("conditioned blocks with gates of zero", "diffusion", Script(Diffusion, series, _denoising)),
    ("pooled by a learned query", "own encoder", Script(AttentionPooled, _TEXTS, class_loss)),
    ("gradient reversal", "own encoder", Script(Adversarial, _TEXTS, _adversarial_loss)),
    (
        "unused pooler",
        "sentence encoder",
        Script(_WITH_POOLER, data.pairs, pair_loss, lambda model: [AdamW(model.parameters(), 1e-3)]),
    ),
    (
        "two views, one without gradients",
        "sentence encoder",
        Script(TwoViews, data.pairs, lambda model, batch: model(**batch)),
    ),
    ("cosines of pairs", "sentence encoder", Script(_WITH_POOLER, data.pairs, _mean_squared_to_one)),
    (
        "frozen batch norm",
        "features",
        Script(
            partial(Features, has_positions=True, outputs=1, has_batch_norm=True),
            series,
            lambda model, batch: F.mse_loss(model(batch["values"]), batch["labels"]),
            before_step=_frozen_batch_norm,
        ),
    ),
    ("learned temperature of cosines", "swin v2", Script(_swin, data.images(), image_loss)),
)
