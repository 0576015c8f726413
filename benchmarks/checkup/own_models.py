"""Models as people write them, which are not usual."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import architectures, data, nets
from benchmarks.checkup.architectures import vit
from benchmarks.checkup.data import BATCH_SIZE
from benchmarks.checkup.nets import CLASSES, FEATURES, WIDTH, Block, Net


class Experts(nn.Module):
    """Feed-forward nets, of which each token is given to the best one, so that some are given none."""

    def __init__(self, count: int = 16):
        super().__init__()
        self.router = nn.Linear(WIDTH, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for _ in range(count)
        )

    def forward(self, states: Tensor) -> Tensor:
        shares = self.router(states).softmax(-1)
        share, chosen = shares.max(-1)
        result = torch.zeros_like(states)
        for index, expert in enumerate(self.experts):
            is_given = chosen == index
            if is_given.any():
                result[is_given] = expert(states[is_given]) * share[is_given][:, None]
        return result


def with_experts() -> Net:
    """Return a causal net of experts."""
    net = Net(is_causal=True)
    for block in net.blocks:
        block.mlp = Experts()
    return net


class Features(nn.Module):
    """Transformer of features: a series with positions, or a set without.

    Args:
        has_positions: tokens have an order.
        outputs: of the mean of the tokens.
        has_batch_norm: features are normalised over the batch.
        each_token: outputs of each token.
    """

    def __init__(self, *, has_positions: bool, outputs: int, has_batch_norm: bool = False, each_token: bool = False):
        super().__init__()
        self.projection, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, outputs)
        self.positions = nn.Parameter(torch.randn(1, nets.TOKENS, WIDTH) * 0.02) if has_positions else None
        self.batch_norm = nn.BatchNorm1d(FEATURES) if has_batch_norm else None
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.each_token = each_token

    def forward(self, values: Tensor) -> Tensor:
        if self.batch_norm is not None:
            values = self.batch_norm(values.transpose(1, 2)).transpose(1, 2)
        states = self.projection(values)
        if self.positions is not None:
            states = states + self.positions
        for block in self.blocks:
            states = block(states, None, False)
        return self.head(states if self.each_token else states.mean(1))


class Gan(nn.Module):
    """Generator of series and the discriminator that it is to deceive."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Features(has_positions=True, outputs=FEATURES, each_token=True)
        self.discriminator = Features(has_positions=True, outputs=1)

    def fake(self) -> Tensor:
        return self.generator(torch.randn(BATCH_SIZE, nets.TOKENS, FEATURES))

    def loss_of_generator(self) -> Tensor:
        return F.softplus(-self.discriminator(self.fake())).mean()

    def loss_of_discriminator(self, real: Tensor) -> Tensor:
        fakes = self.discriminator(self.fake().detach())
        return F.softplus(fakes).mean() + F.softplus(-self.discriminator(real)).mean()


class Student(nn.Module):
    """Net that learns labels and the outputs of a teacher within."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Net(is_causal=False, classes=CLASSES)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = self.teacher.eval()(input_ids, attention_mask)
        return self.student(input_ids, attention_mask), target


class TwoTasks(nn.Module):
    """Encoder with two heads, of which each batch uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Net(is_causal=False, classes=CLASSES)
        self.encoder.head = nn.Identity()
        self.heads = nn.ModuleList((nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 2)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task: int) -> Tensor:
        return self.heads[task](self.encoder(input_ids, attention_mask))


class SometimesSkipped(Block):
    """Block that a training step skips now and then."""

    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        if self.training and torch.rand(()) < 0.4:
            return states
        return super().forward(states, mask, is_causal)


def stochastic_depth() -> Net:
    """Return a causal net whose blocks are skipped now and then."""
    net = Net(is_causal=True)
    net.blocks = nn.ModuleList(SometimesSkipped() for _ in range(4))
    return net.apply(nets.small_init)


class Captioner(nn.Module):
    """Frozen tower of images and frozen language model with a projection between them that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = vit("Model")().requires_grad_(False)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.language = architectures.llama()().requires_grad_(False)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
        pictures = self.projection(self.tower(pixel_values).last_hidden_state)
        states = torch.cat([pictures, self.language.get_input_embeddings()(input_ids)], 1)
        ignored = torch.full(pictures.shape[:2], data.IGNORED)
        return self.language(inputs_embeds=states, labels=torch.cat([ignored, labels], 1)).loss
