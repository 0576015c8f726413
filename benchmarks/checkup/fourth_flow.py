"""Faults of masks, mixing, positions and depth of a fourth blind set, for those of `fourth`."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import changes
from benchmarks.checkup import fourth_attentions as attend
from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.data import IGNORED, Batch
from benchmarks.checkup.edits import batchwise, prepared
from benchmarks.checkup.faults import Fault
from benchmarks.checkup.nets import Net, TorchEncoder, mean_of_real
from benchmarks.checkup.own_models import Experts
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_flow import ATTENDED, DECODERS, deep
from benchmarks.checkup.third_flow import OF_BERT

NORMS_OF_LAYERS = changes.LAYER + r"\..*(norm|ln_)\w*"
_ENCODERS = ("own encoder", "torch encoder", *OF_BERT)
_PROMPT, _BLOCK, _EXPERTS = 5, 4, 4


class ExpertsThatChoose(Experts):
    """Feed-forward nets, each of which takes the tokens that fit it best.

    Attributes:
        within_text: they take from each text apart, and not from the whole batch.
    """

    within_text = False

    def __init__(self) -> None:
        super().__init__(_EXPERTS)

    def forward(self, states: Tensor) -> Tensor:
        rows = states if self.within_text else states.flatten(0, 1)[None]
        shares = self.router(rows).softmax(-1)
        result = torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            share, chosen = shares[..., index].topk(rows.shape[1] // 2, dim=1)
            places = chosen[..., None].expand(-1, -1, rows.shape[-1])
            result = result.scatter_add(1, places, expert(rows.gather(1, places)) * share[..., None])
        return result.view(states.shape)


class _PositionsBehind(TorchEncoder):
    """Encoder that adds positions behind its layers."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.encoder(self.tokens(input_ids), src_key_padding_mask=self.key_padding_mask(attention_mask))
        return self.head(mean_of_real(states + self.positions_of(input_ids.shape[1]), attention_mask))


def replaced(pattern: str, make: type[nn.Module]) -> changes.Prepare:
    """Return the change that puts new modules in the place of those with such names."""

    def prepare(model: nn.Module) -> None:
        found = set(changes.named(model, pattern))
        for name in [name for name, module in model.named_modules() if module in found]:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, make())

    return prepare


def prefix_seen(seen: int) -> changes.Prepare:
    """Return the change of batches by which all see the first tokens, and the prompt has no labels."""

    def change(batch: Batch) -> Batch:
        labels = batch["labels"].clone()
        labels[:, :_PROMPT] = IGNORED
        mask = changes.with_mask(lambda tokens: changes.square(tokens).tril() | (torch.arange(tokens) < seen))
        return mask(batch) | {"labels": labels}

    return change


def by_blocks(tokens: int) -> Tensor:
    """Return the mask in which each token sees its own block and earlier ones."""
    blocks = torch.arange(tokens) // _BLOCK
    return blocks[:, None] >= blocks


def with_fourier(states: Tensor) -> Tensor:
    """Add the Fourier transform over the tokens."""
    return states + torch.fft.fft(states, dim=1, norm="ortho").real


def _convolved(states: Tensor) -> Tensor:
    return states + F.avg_pool1d(states.mT, 3, stride=1, padding=1).mT


def _masks_sorted(batch: Batch) -> Batch:
    """Sort the masks by length, and leave the texts in their order."""
    mask = batch["attention_mask"]
    return batch | {"attention_mask": mask[mask.sum(1).argsort(descending=True)]}


def _without_mask_of_encoder(model: nn.Module, batch: Batch) -> Tensor:
    """Give the mask to the encoder alone, though the decoder reads the encoder's states too."""
    states = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return model(encoder_outputs=states, labels=batch["labels"]).loss


def _own_positions_behind(model: Net) -> None:
    model.embed = lambda ids: model.dropout(model.tokens(ids))
    model.norm.register_forward_hook(
        lambda module, inputs, states: states + model.positions(torch.arange(states.shape[1]))
    )


def _positions_behind(model: nn.Module) -> None:
    (positions,) = changes.named(model, r".*position_embeddings")
    positions.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    *_, layer = changes.named(model, changes.LAYER)

    def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return output[0] + positions.weight[: output[0].shape[1]], *output[1:]
        return output + positions.weight[: output.shape[1]]

    layer.register_forward_hook(hook)


def _residuals_detached(model: nn.Module) -> None:
    """Let what goes past each layer have no gradient."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return output[0] - inputs[0] + inputs[0].detach(), *output[1:]
        return output - inputs[0] + inputs[0].detach()

    for layer in changes.named(model, changes.LAYER):
        layer.register_forward_hook(hook)


def _norms_thrown_away(model: nn.Module) -> None:
    for norm in changes.named(model, NORMS_OF_LAYERS):
        norm.register_forward_hook(lambda module, inputs, output: inputs[0])


def with_epsilon(epsilon: float) -> changes.Prepare:
    """Return the change that sets what all norms add to the variance."""
    return changes.with_attributes(nn.LayerNorm, eps=epsilon)


def as_bytes(*, with_scale: bool) -> changes.Prepare:
    """Return the change that rounds matrices to whole numbers up to 127, times a scale for each or without it."""

    def load(weight: Tensor) -> None:
        scale = weight.abs().amax() / 127
        weight.copy_((weight / scale).round() * (scale if with_scale else 1.0))

    return changes.on_matrices(load)


def _positions_behind_in_torch(script: Script) -> Script:
    return replace(script, build=_PositionsBehind)


FLOW = (
    Fault(
        "prefix of the mask longer than that without labels",
        ("future_leak",),
        {DECODERS[:-1]: batchwise(prefix_seen(8))},
    ),
    Fault("mask causal by blocks of four", ("future_leak",), {DECODERS[:-1]: batchwise(changes.with_mask(by_blocks))}),
    Fault(
        "Fourier transform over tokens in a causal model",
        ("future_leak",),
        {DECODERS: prepared(changes.on_outputs(changes.LAYER, with_fourier, first_only=True))},
    ),
    Fault(
        "experts that choose tokens in a causal model",
        ("future_leak", "batch_mixing"),
        {DECODERS[:-1]: prepared(replaced(r".*\.mlp", ExpertsThatChoose))},
    ),
    Fault("masks sorted by length, texts not", ("padding_leak",), {(*_ENCODERS, "t5"): batchwise(_masks_sorted)}),
    Fault(
        "convolution over tokens and padding",
        ("padding_leak",),
        {
            ("own encoder", "torch encoder", "bert", "t5"): prepared(
                changes.on_outputs(changes.LAYER, _convolved, first_only=True)
            )
        },
    ),
    Fault(
        "mask given to the encoder, not to the decoder",
        ("padding_leak",),
        {("t5", "bart"): lambda script: replace(script, loss=_without_mask_of_encoder)},
    ),
    Fault(
        "scores filled where the added mask is zero",
        ("mask_inverted", "padding_leak"),
        {("own encoder", *OF_BERT): prepared(by_hand(attend.filled_where_zero))},
    ),
    Fault(
        "texts and heads taken apart in the wrong order",
        ("batch_mixing",),
        {ATTENDED: prepared(by_hand(attend.heads_before_texts))},
    ),
    Fault(
        "texts in one row without their borders", ("batch_mixing",), {ATTENDED: prepared(by_hand(attend.in_one_row))}
    ),
    Fault("keys of the first token only", ("blind_attention",), {ATTENDED: prepared(by_hand(attend.first_key_only))}),
    Fault(
        "positions added behind the layers",
        ("order_ignored",),
        {
            ("own encoder",): prepared(_own_positions_behind),
            ("torch encoder",): _positions_behind_in_torch,
            OF_BERT[1:]: prepared(_positions_behind),
        },
    ),
    Fault(
        "cap of the scores multiplied where it divides",
        ("wrong_attention_scale",),
        {ATTENDED: prepared(by_hand(attend.caps_swapped))},
    ),
    Fault(
        "scale of zero by a division without remainder",
        ("wrong_attention_scale", "no_gradient"),
        {ATTENDED: prepared(changes.with_scale(lambda width: width**-1 // 2))},
    ),
    Fault(
        "residuals detached in 12 layers",
        ("broken_gradient_path",),
        {("own causal", "own encoder", "llama", "gpt2", "vit"): deep(prepared(_residuals_detached))},
    ),
    Fault(
        "what norms return thrown away in 12 layers of Kaiming's weights",
        ("initialisation", "broken_gradient_path", "no_gradient"),
        {
            ("own causal", "own encoder", "gpt2", "vit"): deep(
                prepared(_norms_thrown_away, changes.on_matrices(nn.init.kaiming_normal_))
            )
        },
    ),
    Fault(
        "norms with an epsilon of 1e5",
        ("initialisation", "broken_gradient_path"),
        {("torch encoder", *OF_BERT, "bart"): prepared(with_epsilon(1e5))},
    ),
    Fault(
        "8-bit weights loaded without their scales",
        ("initialisation", "wrong_attention_scale"),
        {ATTENDED: prepared(as_bytes(with_scale=False))},
    ),
)
