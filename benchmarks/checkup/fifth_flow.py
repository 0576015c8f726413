"""Faults of masks, mixing, positions and weights of a fifth blind set, for those of `fifth`."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.checkup import changes
from benchmarks.checkup import fifth_attentions as attend
from benchmarks.checkup.attentions import Attend, by_hand
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, prepared
from benchmarks.checkup.faults import MIXED, Fault
from benchmarks.checkup.fifth_pooling import POOLED, by_attention, last_word, with_pooling
from benchmarks.checkup.nets import CLASSES, TOKENS, VOCABULARY, WIDTH, Net, TorchEncoder
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.scripts import Change, Prepare, Script
from benchmarks.checkup.second_flow import ATTENDED, DECODERS
from benchmarks.checkup.third_flow import OF_BERT

_LONGER, _NEW, _TEXTS = 4, 24, 2
_KEYS_AND_VALUES = r".*\.(k|v|k_proj|v_proj|key|value)"


def swapped(pattern: str, make: Callable[[nn.Module], nn.Module]) -> Prepare:
    """Return the change that puts in the place of modules what a function makes of them."""

    def prepare(model: nn.Module) -> None:
        found = set(changes.named(model, pattern))
        for name, module in list(model.named_modules()):
            if module in found:
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, make(module))

    return prepare


def _joined_by_or(batch: Batch) -> Batch:
    """Let each token see what is earlier or real, not what is earlier and real."""
    size, tokens = batch["input_ids"].shape
    real = batch["attention_mask"][:, None, None, :].bool()
    return batch | {"attention_mask": (changes.square(tokens).tril() | real).expand(size, 1, tokens, tokens)}


def _in_order_of_tokenizer(batch: Batch) -> Batch:
    """Give ids, types and mask in a row to a model that wants ids, mask and types."""
    mask = batch["attention_mask"]
    return batch | {"attention_mask": torch.zeros_like(mask), "token_type_ids": mask}


def _lengths_compared_wrongly(batch: Batch) -> Batch:
    """Make the mask of all places that are not before the end."""
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    return batch | {"attention_mask": (torch.arange(batch["attention_mask"].shape[1]) >= lengths).long()}


def _mask_for_first_layer(model: nn.Module) -> None:
    """Give the mask to the first layer alone."""

    def forget(module: nn.Module, inputs: tuple, named: dict[str, object]) -> tuple[tuple, dict[str, object]]:
        others = tuple(None if isinstance(each, Tensor) else each for each in inputs[1:])
        named = {name: None if "mask" in name else each for name, each in named.items()}
        return (*inputs[:1], *others), named

    for layer in list(changes.named(model, changes.LAYER))[1:]:
        layer.register_forward_pre_hook(forget, with_kwargs=True)


def _cross_mask_inverted(model: nn.Module, batch: Batch) -> Tensor:
    """Give the decoder the mask of padding."""
    mask = batch["attention_mask"]
    states = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
    return model(encoder_outputs=states, attention_mask=1 - mask, labels=batch["labels"]).loss


def several_targets(*, in_same_order: bool) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss of two targets for each text, whose states are repeated in the targets' order or in another."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        mask = batch["attention_mask"]
        states = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        if in_same_order:
            states, mask = (each.repeat_interleave(_TEXTS, 0) for each in (states, mask))
        else:
            states, mask = states.repeat(_TEXTS, 1, 1), mask.repeat(_TEXTS, 1)
        labels = batch["labels"].repeat_interleave(_TEXTS, 0)
        return model(encoder_outputs=BaseModelOutput(states), attention_mask=mask, labels=labels).loss

    return loss


def _prefix_in_place(model: nn.Module) -> None:
    """Put a learned prefix in the place of keys and values, where it should stand before them."""
    for module in changes.named(model, _KEYS_AND_VALUES):
        module.prefix = nn.Parameter(torch.randn(TOKENS + 1, module.weight.shape[0]) * 0.02)
        module.register_forward_hook(lambda module, inputs, output: module.prefix[: output.shape[1]].expand_as(output))


def _place_of_last(batch: Batch) -> Batch:
    """Give all tokens the position of the last one, as for the one token that is generated."""
    return batch | {"position_ids": (batch["attention_mask"].sum(1, keepdim=True) - 1)}


def _own_place_of_last(model: Net) -> None:
    model.embed = lambda ids: model.dropout(model.tokens(ids) + model.positions.weight[ids.shape[1] - 1])


def _torch_place_of_last(model: TorchEncoder) -> None:
    model.positions_of = lambda tokens: model.positions[:, tokens - 1 : tokens]


class _NoPlaces(nn.Module):
    """Table of positions that has none."""

    def forward(self, places: Tensor) -> Tensor:
        return torch.zeros(*places.shape, WIDTH)


def without_table(model: nn.Module) -> None:
    """Take the table of positions out of BERT or a relative."""
    swapped(r".*position_embeddings", lambda old: _NoPlaces())(model)


def own_without_table(script: Script) -> Script:
    """Return the script of an own encoder without positions."""
    return replace(script, build=lambda: Net(is_causal=False, classes=CLASSES, has_positions=False))


def rotated(by: Attend) -> dict[tuple[str, ...], Change]:
    """Return the changes of encoders whose only positions are rotations by a function."""
    return {
        ("own encoder",): lambda script: prepared(by_hand(by))(own_without_table(script)),
        OF_BERT: prepared(without_table, by_hand(by)),
    }


@torch.no_grad()
def _all_drawn(model: nn.Module) -> None:
    """Draw all parameters alike, those of norms, too."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)


def _root_not_inverted(model: nn.Module) -> None:
    """Draw matrices of the layers with the root of the width as deviation, where its inverse was meant."""
    for layer in changes.named(model, changes.LAYER):
        changes.on_matrices(lambda weight: nn.init.normal_(weight, std=weight.shape[-1] ** 0.5))(layer)


def new_words(like: Callable[[Tensor], Tensor]) -> Prepare:
    """Return the change that draws the embeddings of new words by a function of the old ones."""

    @torch.no_grad()
    def prepare(model: nn.Module) -> None:
        weight = model.get_input_embeddings().weight
        weight[_NEW:VOCABULARY] = like(weight[:_NEW])

    return prepare


def _of_deviation_1(old: Tensor) -> Tensor:
    return torch.randn(VOCABULARY - _NEW, old.shape[1])


def _wide_biases(model: nn.Module) -> None:
    for table in changes.named(model, r".*relative_attention_bias"):
        nn.init.normal_(table.weight, std=30.0)


def window(size: int) -> Callable[[Tensor], Tensor]:
    """Return the mask of a causal window."""

    def allowed(tokens: int) -> Tensor:
        places = torch.arange(tokens)
        distances = places[:, None] - places
        return (distances >= 0) & (distances <= size)

    return changes.with_mask(allowed)


_ROWS_OF_LONGER = changes.with_mask(lambda tokens: changes.square(tokens + _LONGER).tril()[-tokens:, :tokens])
_MEAN_ADDED = changes.on_outputs(changes.LAYER, lambda states: states + states.mean(1, keepdim=True), first_only=True)
_NORM_OVER_BOTH = changes.on_outputs(
    changes.LAYER, lambda states: F.layer_norm(states, states.shape[1:]), first_only=True
)
_OVER_LARGEST = changes.on_outputs(changes.LAYER, lambda states: states / states.abs().amax(), first_only=True)
_MASKED_DECODERS = DECODERS[:-1]

FLOW = (
    Fault("mask's rows taken from a longer mask", ("future_leak",), {_MASKED_DECODERS: batchwise(_ROWS_OF_LONGER)}),
    Fault("masks of order and padding joined by or", ("future_leak",), {_MASKED_DECODERS: batchwise(_joined_by_or)}),
    Fault("mean of the text added to each token", ("future_leak",), {DECODERS: prepared(_MEAN_ADDED)}),
    Fault("norm over tokens and width, causal", ("future_leak",), {DECODERS: prepared(_NORM_OVER_BOTH)}),
    Fault(
        "tokenizer's outputs given by their order",
        ("padding_leak", "mask_inverted"),
        {OF_BERT: batchwise(_in_order_of_tokenizer)},
    ),
    Fault(
        "mask given to the first layer only",
        ("padding_leak",),
        {("own encoder", "torch encoder", *OF_BERT, "sentence encoder"): prepared(_mask_for_first_layer)},
    ),
    Fault(
        "pooled by attention over padding too",
        ("padding_leak",),
        {POOLED: prepared(with_pooling(by_attention(has_mask=False), has_query=True))},
    ),
    Fault(
        "mask of the encoder's states inverted for the decoder",
        ("mask_inverted", "padding_leak"),
        {("t5", "bart"): lambda script: replace(script, loss=_cross_mask_inverted)},
    ),
    Fault(
        "lengths compared the wrong way round",
        ("mask_inverted", "padding_leak"),
        {("own encoder", *OF_BERT, "t5", "bart"): batchwise(_lengths_compared_wrongly)},
    ),
    Fault(
        "last word read in the flattened batch without offsets",
        ("batch_mixing",),
        {POOLED: prepared(with_pooling(last_word(has_offset=False)))},
    ),
    Fault(
        "encoder's states repeated in another order than targets",
        ("batch_mixing", "labels_unrelated"),
        {("t5", "bart"): lambda script: replace(script, loss=several_targets(in_same_order=False))},
    ),
    Fault(
        "states divided by the largest of the batch", ("batch_mixing", "future_leak"), {MIXED: prepared(_OVER_LARGEST)}
    ),
    Fault("window rounded down to zero", ("blind_attention",), {_MASKED_DECODERS: batchwise(window(TOKENS // 32))}),
    Fault(
        "prefix in place of keys and values",
        ("blind_attention", "no_gradient"),
        {("own causal", "own encoder", "llama", "bert", "vit"): prepared(_prefix_in_place)},
    ),
    Fault(
        "distances penalised by a bell of a tenth",
        ("blind_attention", "wrong_attention_scale"),
        {ATTENDED: prepared(by_hand(attend.near_by_tenth))},
    ),
    Fault(
        "position of the last token for all",
        ("order_ignored",),
        {
            ("own encoder",): prepared(_own_place_of_last),
            ("torch encoder",): prepared(_torch_place_of_last),
            OF_BERT: batchwise(_place_of_last),
        },
    ),
    Fault("rotation by the number of the head", ("order_ignored",), rotated(attend.rotated_by_heads)),
    Fault(
        "biases of distances with a deviation of 30",
        ("wrong_attention_scale",),
        {
            ("own causal", "own encoder", "llama", "bert"): prepared(attend.with_bias_of_distances(30.0)),
            ("t5",): prepared(_wide_biases),
        },
    ),
    Fault(
        "scale of cosines for states that are not normalised",
        ("wrong_attention_scale",),
        {ATTENDED: prepared(by_hand(attend.hundredfold))},
    ),
    Fault(
        "parameters of norms drawn like all others",
        ("initialisation", "broken_gradient_path"),
        {("own causal", "torch encoder", "llama", "gpt2", "bert classifier", "vit"): prepared(_all_drawn)},
    ),
    Fault(
        "deviation of the root of the width, not its inverse",
        ("initialisation", "wrong_attention_scale"),
        {("own causal", "own encoder", "llama", "gpt2", "bert", "vit"): prepared(_root_not_inverted)},
    ),
    Fault(
        "new words beside trained ones with a deviation of 1",
        ("initialisation",),
        {("gpt2", "bert", "bart", "opt"): fine_tuned(prepared(new_words(_of_deviation_1)))},
    ),
)
