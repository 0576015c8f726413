"""Oddities of sound models of the second blind set: attention, positions, weights, for `odd_second`."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import changes, nets
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import prepared
from benchmarks.checkup.nets import BEGIN, HEADS, PAD, Net, TorchEncoder, mean_of_real
from benchmarks.checkup.scripts import Script

FEED_FORWARD = r".*(mlp\.[02]|up_proj|down_proj|linear[12]|intermediate\.dense|DenseReluDense\.w[io]|fc[12])"


def linear(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Weigh by products of positive features, and normalise after the mask."""
    weights = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
    weights = weights if mask is None else weights * (mask >= 0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6) @ v


def sigmoid(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Weigh by sigmoids, which need not sum to 1."""
    scores = q @ k.mT * scale - math.log(k.shape[-2])
    return (scores if mask is None else scores + mask).sigmoid() @ v


def with_one_more(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Add 1 to the sum of the softmax, so that a token may see nothing."""
    scores = q @ k.mT * scale
    scores = scores if mask is None else scores + mask
    return F.pad(scores, (1, 0)).softmax(-1)[..., 1:] @ v


def masked_then_renormalised(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Set weights to zero after the softmax, and divide by what is left."""
    weights = (q @ k.mT * scale).softmax(-1)
    weights = weights if mask is None else weights * (mask >= 0)
    return weights / weights.sum(-1, keepdim=True) @ v


def of_normed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Normalise queries and keys, and keep the scale."""
    q, k = (F.layer_norm(each, each.shape[-1:]) for each in (q, k))
    scores = q @ k.mT * scale
    return (scores if mask is None else scores + mask).softmax(-1) @ v


class TokensFirst(TorchEncoder):
    """Encoder whose layers want tokens first, and are given them by transposes."""

    def __init__(self) -> None:
        super().__init__(batch_first=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = (self.tokens(input_ids) + self.positions_of(input_ids.shape[1])).transpose(0, 1)
        states = self.encoder(states, src_key_padding_mask=self.key_padding_mask(attention_mask))
        return self.head(mean_of_real(states.transpose(0, 1), attention_mask))


def _sinusoids(tokens: int) -> Tensor:
    angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(0, nets.WIDTH, 2) / nets.WIDTH)
    return torch.cat([angles.sin(), angles.cos()], 1) * 0.05


def frozen_sinusoids(model: nn.Module) -> None:
    """Fill the table of positions with sinusoids, which do not train."""
    for name, table in model.named_parameters():
        if "position" in name:
            table.data.copy_(_sinusoids(table.shape[-2]).view_as(table))
            table.requires_grad_(False)


def masks_of_heads(batch: Batch) -> Batch:
    """Repeat the mask for each head and each query."""
    mask = batch["attention_mask"][:, None, None, :].bool()
    return batch | {"attention_mask": mask.expand(-1, HEADS, mask.shape[-1], -1)}


def own_masks_of_heads(model: nn.Module) -> None:
    """Make a mask for each head and each query."""
    model.make_mask = lambda mask, tokens: mask[:, None, None, :].bool().expand(-1, HEADS, tokens, -1)


def added_mask(batch: Batch) -> Batch:
    """Give what is to be added to the scores, by four axes."""
    mask = (1.0 - batch["attention_mask"].float())[:, None, None, :] * torch.finfo(torch.float32).min
    return batch | {"attention_mask": mask.expand(-1, 1, mask.shape[-1], -1)}


def bool_mask(batch: Batch) -> Batch:
    """Give the mask as booleans."""
    return batch | {"attention_mask": batch["attention_mask"].bool()}


def float_mask(batch: Batch) -> Batch:
    """Give the mask as numbers of zero and one."""
    return batch | {"attention_mask": batch["attention_mask"].float()}


def own_bool_mask(model: nn.Module) -> None:
    """Make the mask by negating booleans of padding."""
    model.make_mask = lambda mask, tokens: ~(mask == 0)[:, None, None, :]


def not_the_first(batch: Batch) -> Batch:
    """Let no token see the first one, which has no meaning."""
    return batch | {"attention_mask": batch["attention_mask"] * (batch["input_ids"] != BEGIN)}


def all_but_itself(tokens: int) -> Tensor:
    """Return the mask in which each token sees all others."""
    return ~torch.eye(tokens, dtype=torch.bool)


def offset_positions(batch: Batch) -> Batch:
    """Let positions start at any number, the same for a batch."""
    start = int(torch.randint(nets.TOKENS, ()))
    return batch | {"position_ids": torch.arange(start, start + nets.TOKENS).expand_as(batch["input_ids"])}


def looking_back(states: Tensor) -> Tensor:
    """Average each state with the two before."""
    return F.avg_pool1d(F.pad(states.mT, (2, 0)), 3, stride=1).mT


def shifted(states: Tensor) -> Tensor:
    """Add to each state the one before, and nothing to the first."""
    return states + F.pad(states[:, :-1], (0, 0, 1, 0))


def grouped_norm(states: Tensor) -> Tensor:
    """Normalise four groups of each token's numbers."""
    return F.group_norm(states.flatten(0, 1), 4).view_as(states)


def mostly_detached(states: Tensor) -> Tensor:
    """Let a tenth of the gradient through, which steadies embeddings."""
    return 0.1 * states + 0.9 * states.detach()


def rounded_straight_through(states: Tensor) -> Tensor:
    """Round states, and let the gradient through as if they were not."""
    return states + ((states * 64).round() / 64 - states).detach()


def quantised(module: nn.Module) -> None:
    """Use weights of 8 bits, and let the gradient through to those of full precision."""

    def forward(states: Tensor) -> Tensor:
        step = module.weight.detach().abs().max() / 127
        rounded = (module.weight / step).round() * step
        return F.linear(states, module.weight + (rounded - module.weight).detach(), module.bias)

    module.forward = forward


def widened(model: nn.Module) -> None:
    """Multiply embeddings by the root of the width."""
    changes.on_outputs(changes.EMBEDDING, lambda states: states * nets.WIDTH**0.5)(model)


def small_logits(model: nn.Module) -> None:
    """Divide logits by four."""
    changes.on_outputs(r"head|lm_head|classifier", lambda logits: logits / 4)(model)


class _PostNorm(nets.Block):
    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        states = self.norm1(states + self.dropout(self.attention(states, mask, is_causal)))
        return self.norm2(states + self.dropout(self.mlp(states)))


def post_norm(model: Net) -> None:
    """Normalise after each sum."""
    model.blocks = nn.ModuleList(_PostNorm() for _ in model.blocks).apply(nets.small_init)


def shared_layer(model: Net) -> None:
    """Pass through the same block four times."""
    model.blocks = nn.ModuleList([model.blocks[0]] * 4)


def max_pooled(script: Script) -> Script:
    """Read the class from the largest values over the real tokens."""

    def prepare(model: Net) -> None:
        def pooled(ids: Tensor, mask: Tensor | None = None) -> Tensor:
            states = model.encode(model.embed(ids), mask)
            return states.masked_fill((ids == PAD)[:, :, None], -torch.inf).amax(1)

        model.pooled = pooled

    return prepared(prepare)(script)


def weight_norm(module: nn.Module) -> None:
    """Train lengths and directions of the weights apart."""
    nn.utils.parametrizations.weight_norm(module)
