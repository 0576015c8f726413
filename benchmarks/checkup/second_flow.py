"""Faults of masks, positions, scales and depth of the second blind set, for those of `second`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import architectures, changes, nets
from benchmarks.checkup import second_attentions as attend
from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, prepared
from benchmarks.checkup.faults import CAUSAL, Fault
from benchmarks.checkup.nets import BEGIN, CLASSES, HEADS, PAD, Net, TorchEncoder
from benchmarks.checkup.odd_trainings import fine_tuned, name_of
from benchmarks.checkup.scripts import Change

DECODERS = (*CAUSAL, "qwen2", "opt")
ATTENDED = ("own causal", "own encoder", "llama", "gpt2", "bert", "vit")
_OF_BERT = ("bert", "bert classifier", "roberta classifier", "sentence encoder")
_MASKED = ("own encoder", "torch encoder", "t5", *_OF_BERT)
_DEPTH = 12
_DEEP: dict[str, Callable[[], nn.Module]] = {
    "own causal": partial(Net, is_causal=True, layers=_DEPTH),
    "own encoder": partial(Net, is_causal=False, classes=CLASSES, layers=_DEPTH),
    "llama": architectures.llama(num_hidden_layers=_DEPTH),
    "gpt2": architectures.gpt2(n_layer=_DEPTH),
    "bert": architectures.bert(num_hidden_layers=_DEPTH),
    "vit": architectures.vit(num_hidden_layers=_DEPTH),
    "qwen2": architectures.decoder("Qwen2", num_key_value_heads=1, num_hidden_layers=_DEPTH),
}


def deep(change: Change) -> Change:
    """Return the change of plain scripts that has 12 layers, too."""
    return lambda script: change(replace(script, build=_DEEP[name_of(script)]))


class _MasksOfHeads(TorchEncoder):
    """Encoder with a mask for each head of each text, which are repeated in the wrong order."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.tokens(input_ids) + self.positions_of(input_ids.shape[1])
        if attention_mask is None:
            raise ValueError("No mask.")
        hidden = attention_mask.repeat(HEADS, 1)[:, None] == 0
        states = self.encoder(states, mask=hidden.expand(-1, input_ids.shape[1], -1))
        return self.head(nets.mean_of_real(states, attention_mask))


class _Viewed(TorchEncoder):
    """Encoder whose layers want tokens first, which a view gives them."""

    def __init__(self) -> None:
        super().__init__(batch_first=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.tokens(input_ids) + self.positions_of(input_ids.shape[1])
        size, tokens, width = states.shape
        hidden = self.key_padding_mask(attention_mask)
        states = self.encoder(states.reshape(tokens, size, width), src_key_padding_mask=hidden)
        return self.head(nets.mean_of_real(states.reshape(size, tokens, width), attention_mask))


def _masks_of_other_texts(mask: Tensor) -> Tensor:
    size, tokens = mask.shape
    return mask.repeat(HEADS, 1).view(size, HEADS, 1, tokens).bool()


def _with_masks_of_other_texts(batch: Batch) -> Batch:
    mask = _masks_of_other_texts(batch["attention_mask"])
    return batch | {"attention_mask": mask.expand(-1, -1, mask.shape[-1], -1)}


def _one_too_long(batch: Batch) -> Batch:
    mask = batch["attention_mask"].clone()
    mask[:, 1:] |= batch["attention_mask"][:, :-1]
    return batch | {"attention_mask": mask}


def _bits_inverted(batch: Batch) -> Batch:
    return batch | {"attention_mask": ~batch["attention_mask"]}


def _extended(batch: Batch) -> Batch:
    """Make what is added to the scores of the mask, from which the model makes it again."""
    return batch | {"attention_mask": (1.0 - batch["attention_mask"]) * -1e4}


def _special_only(batch: Batch) -> Batch:
    ids = batch["input_ids"]
    return batch | {"attention_mask": ((ids == BEGIN) | (ids == PAD)).long()}


def _positions_thrown_away(model: nn.Module) -> None:
    if isinstance(model, Net):
        model.embed = lambda ids: model.dropout(model.tokens(ids))
    elif isinstance(model, TorchEncoder):
        model.positions_of = lambda tokens: torch.zeros(1, tokens, nets.WIDTH)
    else:
        changes.on_outputs(r".*position_embeddings", torch.zeros_like)(model)


def _mask_as_positions(batch: Batch) -> Batch:
    return batch | {"position_ids": batch["attention_mask"]}


def _own_mask_as_positions(model: nn.Module) -> None:
    model.embed = lambda ids: model.dropout(model.tokens(ids) + model.positions((ids != PAD).long()))


def _residual_again(model: nn.Module) -> None:
    def again(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return output[0] + inputs[0], *output[1:]
        return output + inputs[0]

    for layer in changes.named(model, changes.LAYER):
        layer.register_forward_hook(again)


def _almost_detached(states: Tensor) -> Tensor:
    return 1e-5 * states + (1 - 1e-5) * states.detach()


def _both_ways(states: Tensor) -> Tensor:
    return F.avg_pool1d(states.mT, 3, stride=1, padding=1).mT


def _shifted_over_batch(states: Tensor) -> Tensor:
    return states + states.flatten(0, 1).roll(1, 0).view_as(states)


_FROM_BEHIND = changes.on_outputs(changes.EMBEDDING, lambda states: states + states.roll(1, 1))
_LARGE_SCORES = changes.on_modules(r".*\.(q|k|q_proj|k_proj|query|key)", lambda each: nn.init.normal_(each.weight))
_LARGE_HEAD = changes.on_modules("head|classifier|lm_head", lambda each: nn.init.normal_(each.weight, std=3.0))

FLOW = (
    Fault("masked scores set to 1e-9", ("future_leak",), {DECODERS: prepared(by_hand(attend.masked_to_almost_zero))}),
    Fault(
        "convolution over tokens that looks both ways",
        ("future_leak",),
        {DECODERS: prepared(changes.on_outputs(changes.LAYER, _both_ways, first_only=True))},
    ),
    Fault("shift of tokens that comes in again from behind", ("future_leak",), {DECODERS: prepared(_FROM_BEHIND)}),
    Fault(
        "mask applied after the softmax",
        ("padding_leak",),
        {
            ("own encoder", "bert", "bert classifier", "roberta classifier"): fine_tuned(
                prepared(by_hand(attend.masked_after_softmax))
            )
        },
    ),
    Fault(
        "masks of heads repeated in the wrong order",
        ("padding_leak", "batch_mixing"),
        {
            ("own encoder",): prepared(
                lambda model: setattr(model, "make_mask", lambda mask, tokens: _masks_of_other_texts(mask))
            ),
            ("torch encoder",): lambda script: replace(script, build=_MasksOfHeads),
            ("bert", "bert classifier", "roberta classifier"): batchwise(_with_masks_of_other_texts),
        },
    ),
    Fault("mask one token too long", ("padding_leak",), {_MASKED: batchwise(_one_too_long)}),
    Fault("bits of an integer mask inverted", ("padding_leak",), {_MASKED: batchwise(_bits_inverted)}),
    Fault("mask extended twice", ("mask_inverted", "padding_leak"), {_MASKED: batchwise(_extended)}),
    Fault(
        "mask of special tokens as that of attention",
        ("mask_inverted", "padding_leak"),
        {_MASKED: batchwise(_special_only)},
    ),
    Fault(
        "view in place of a transpose to tokens first",
        ("batch_mixing",),
        {
            ATTENDED: prepared(by_hand(attend.over_views)),
            ("torch encoder",): lambda script: replace(script, build=_Viewed),
        },
    ),
    Fault(
        "shift of tokens over the flattened batch",
        ("batch_mixing",),
        {(*ATTENDED, "t5"): prepared(changes.on_outputs(changes.EMBEDDING, _shifted_over_batch))},
    ),
    Fault(
        "queries times keys element by element", ("blind_attention",), {ATTENDED: prepared(by_hand(attend.elementwise))}
    ),
    Fault(
        "weights of attention summed away by an einsum",
        ("blind_attention", "no_gradient"),
        {ATTENDED: prepared(by_hand(attend.weights_summed_away))},
    ),
    Fault(
        "sum with positions thrown away",
        ("order_ignored", "no_gradient"),
        {("own encoder", "torch encoder", *_OF_BERT): prepared(_positions_thrown_away)},
    ),
    Fault(
        "mask given as positions",
        ("order_ignored",),
        {
            ("own encoder",): prepared(_own_mask_as_positions),
            ("bert", "bert classifier", "roberta classifier"): batchwise(_mask_as_positions),
        },
    ),
    Fault(
        "slopes of distances with the wrong sign in the exponent",
        ("wrong_attention_scale", "blind_attention"),
        {ATTENDED: prepared(by_hand(attend.steep_distances))},
    ),
    Fault(
        "queries and keys with a deviation of 1",
        ("wrong_attention_scale",),
        {("own causal", "own encoder", "llama", "bert", "vit", "opt"): prepared(_LARGE_SCORES)},
    ),
    Fault(
        "scale of cosines exponentiated twice",
        ("wrong_attention_scale",),
        {ATTENDED: prepared(by_hand(attend.twice_exponentiated))},
    ),
    Fault(
        "head with a deviation of 3",
        ("initialisation",),
        {("own causal", "own encoder", "torch encoder", "llama", "vit"): prepared(_LARGE_HEAD)},
    ),
    Fault(
        "uniform weights from 0 to 1",
        ("initialisation",),
        {
            ("own causal", "torch encoder", "llama", "gpt2", "qwen2", "opt"): prepared(
                changes.on_matrices(nn.init.uniform_)
            )
        },
    ),
    Fault(
        "residual added again around 12 layers",
        ("initialisation", "broken_gradient_path"),
        {("own causal", "own encoder", "llama", "gpt2", "vit"): deep(prepared(_residual_again))},
    ),
    Fault(
        "sigmoid after each of 12 layers",
        ("broken_gradient_path", "initialisation"),
        {("llama", "gpt2", "qwen2"): deep(prepared(changes.on_outputs(changes.LAYER, torch.sigmoid)))},
    ),
    Fault(
        "states mixed with a detached copy, share of 1e-5",
        ("broken_gradient_path",),
        {
            ("own causal", "torch encoder", "llama", "gpt2", "bert", "bert classifier", "vit"): prepared(
                changes.on_outputs(changes.LAYER, _almost_detached, first_only=True)
            )
        },
    ),
)
