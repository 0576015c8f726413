"""Oddities of sound models of a fifth blind set, for `odd_fifth`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from benchmarks.checkup import changes
from benchmarks.checkup.fifth_flow import swapped
from benchmarks.checkup.fifth_wiring import BRANCHES
from benchmarks.checkup.nets import VOCABULARY, WIDTH, Attention, Block, Net

VALUES = r".*\.(v|v_proj|value)"
_NARROW, _BUCKETS = 8, 13


class GatedNet(nn.Module):
    """Feed-forward net of which one part gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, states: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(states)) * self.up(states))


class Narrow(nn.Module):
    """Narrow embeddings, widened by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Embedding(VOCABULARY, _NARROW), nn.Linear(_NARROW, WIDTH, bias=False)
        nn.init.normal_(self.narrow.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        return self.wide(self.narrow(ids))


class Hashed(nn.Module):
    """Embeddings that are the sum of two of a few rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(_BUCKETS, WIDTH), nn.Embedding(_BUCKETS, WIDTH)
        for table in (self.first, self.second):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.first(ids % _BUCKETS) + self.second(ids // _BUCKETS * 5 % _BUCKETS)


def vectors_that_train(old: nn.Embedding) -> nn.Embedding:
    """Return embeddings of given vectors, which go on to train."""
    vectors = torch.randn_like(old.weight) * 0.02
    return nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=old.padding_idx)


def mean_of_rows(old: Tensor) -> Tensor:
    """Return the mean of the old rows, for the new ones."""
    return old.mean(0).expand(VOCABULARY - len(old), -1)


def rms_norms(model: nn.Module) -> None:
    """Norm by mean squares, where means and deviations were."""
    swapped(r".*(norm|ln_|layernorm|LayerNorm)\w*", lambda old: nn.RMSNorm(WIDTH, eps=1e-6))(model)


def without_biases(model: nn.Module) -> None:
    """Take the biases out of all layers but the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in ("head", "classifier"):
            module.bias = None


class _Sandwich(Block):
    """Block with norms before its parts and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.behind1, self.behind2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        states = states + self.dropout(self.behind1(self.attention(self.norm1(states), mask, is_causal)))
        return states + self.dropout(self.behind2(self.mlp(self.norm2(states))))


def sandwiched(model: Net) -> None:
    """Put norms behind attention and feed-forward nets, too."""
    model.blocks = nn.ModuleList(_Sandwich() for _ in model.blocks)


class _GatedAttention(Attention):
    """Attention whose result is gated by what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        return torch.sigmoid(self.gate(states)) * super().forward(states, mask, is_causal)


def gated_attention(model: Net) -> None:
    """Gate what attention returns."""
    for block in model.blocks:
        block.attention = _GatedAttention()


class _TorchAttention(nn.MultiheadAttention):
    """PyTorch's attention with the arguments of an own net."""

    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:  # type: ignore[override]
        size, tokens, _ = states.shape
        if mask is None and is_causal:
            mask = changes.square(tokens).tril()[None, None]
        if mask is not None:
            mask = ~mask.expand(size, self.num_heads, tokens, tokens).flatten(0, 1)
        return super().forward(states, states, states, attn_mask=mask, need_weights=False)[0]


def attention_of_torch(model: Net) -> None:
    """Attend by PyTorch's own module."""
    for block in model.blocks:
        block.attention = _TorchAttention(WIDTH, 2, batch_first=True)


def scaled_branches(model: nn.Module) -> None:
    """Multiply what each branch returns by learned numbers, which start at a ten-thousandth."""
    for module in changes.named(model, BRANCHES):
        module.scale = nn.Parameter(torch.full((WIDTH,), 1e-4))
        module.register_forward_hook(lambda module, inputs, output: module.scale * output)


def values_of_first_layer(model: nn.Module) -> None:
    """Mix the first layer's values into those of the others."""
    first: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        first[:] = [output]

    begin, *others = changes.named(model, VALUES)
    begin.register_forward_hook(keep)
    for module in others:
        module.register_forward_hook(lambda module, inputs, output: (output + first[0]) / 2)


def recurrent_below(model: nn.Module) -> None:
    """Add what a recurrent net reads in the words before the layers."""
    model.recurrent = nn.GRU(WIDTH, WIDTH, batch_first=True)
    changes.on_outputs(changes.EMBEDDING, lambda states: states + model.recurrent(states)[0])(model)


def earlier_mean_added(model: nn.Module) -> None:
    """Add the mean of the tokens so far to each token."""

    def add(states: Tensor) -> Tensor:
        counts = torch.arange(1, states.shape[1] + 1)[:, None]
        return states + states.cumsum(1) / counts

    changes.on_outputs(changes.LAYER, add, first_only=True)(model)


def embeddings_to_the_top(model: nn.Module) -> None:
    """Add the embeddings to what the last layer returns, times a learned number."""
    model.share, kept = nn.Parameter(torch.tensor(0.1)), list[Tensor]()
    for module in changes.named(model, changes.EMBEDDING):
        module.register_forward_hook(lambda module, inputs, output: kept.__setitem__(slice(None), [output]))
    (norm,) = changes.named(model, changes.LAST_NORM)
    norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] + model.share * kept[0],))


class _Ternary(nn.Module):
    """Round weights to -1, 0 and 1 times their mean size, and send gradients straight through."""

    def forward(self, weight: Tensor) -> Tensor:
        size = weight.abs().mean().clamp(min=1e-6)
        return weight + ((weight / size).round().clamp(-1, 1) * size - weight).detach()


def ternary_weights(model: nn.Module) -> None:
    """Round the matrices of the layers to three numbers."""
    for layer in changes.named(model, changes.LAYER):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                parametrize.register_parametrization(module, "weight", _Ternary())


def mean_of_patches(model: nn.Module) -> None:
    """Give the head the mean of the patches, and not the first state."""
    model.vit.layernorm.register_forward_hook(lambda module, inputs, output: output[:, 1:].mean(1, keepdim=True))


def registers(model: nn.Module) -> None:
    """Add four learned tokens behind the patches."""
    model.registers = nn.Parameter(torch.randn(1, 4, WIDTH) * 0.02)
    model.vit.embeddings.register_forward_hook(
        lambda module, inputs, output: torch.cat([output, model.registers.expand(len(output), -1, -1)], 1)
    )


def patches_hidden(model: nn.Module) -> None:
    """Replace a quarter of the patches by a learned one in training."""
    model.hidden = nn.Parameter(torch.zeros(WIDTH))

    def hide(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        is_hidden = (torch.rand(*output.shape[:2], 1) < 0.25) & (torch.arange(output.shape[1])[:, None] > 0)
        return torch.where(is_hidden, model.hidden, output) if module.training else output

    model.vit.embeddings.register_forward_hook(hide)
