"""Faults as people make them, each on several architectures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.checkup import architectures, changes, data, nets
from benchmarks.checkup.architectures import ARCHITECTURES, EVERY_ARCHITECTURE, class_loss
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, chosen, half, loss_with, optimized, prepared, prepared_late, sgd
from benchmarks.checkup.nets import CLASSES
from benchmarks.checkup.scripts import Case, Change, Part, Script, adamw, circle, each_batch, first_tenth

OWN, HF = ("own causal", "own encoder"), ("llama", "gpt2", "bert", "t5", "vit")
ALL = tuple(ARCHITECTURES)
CAUSAL, MASKED = ("own causal", "llama", "gpt2"), ("own encoder", "torch encoder", "bert", "bert classifier", "t5")
CLASSIFIERS = ("own encoder", "torch encoder", "bert classifier", "vit")
TOKEN_LABELS = ("own causal", "llama", "gpt2", "bert", "t5")
MIXED = ("own causal", "torch encoder", "llama", "bert classifier", "t5", "vit")


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: of the fault.
        kinds: findings that name it, its cause first.
        changes: of the sound script, by the architectures on which it is made so.
    """

    name: str
    kinds: tuple[str, ...]
    changes: Mapping[tuple[str, ...], Change]


def cases_of(faults: Sequence[Fault], part: Part = "tuned-on") -> list[Case]:
    """Return the scripts of each fault; those that only learning can show are trained for longer."""
    return [
        Case(fault.name, architecture, _long_enough(fault, change(EVERY_ARCHITECTURE[architecture])), fault.kinds, part)
        for fault in faults
        for names, change in fault.changes.items()
        for architecture in names
    ]


def _long_enough(fault: Fault, script: Script) -> Script:
    return first_tenth(script) if fault.kinds[0] == "labels_unrelated" else script


def _of_older_model(script: Script) -> Script:
    return replace(script, optimizers=lambda model: adamw()(script.build()))


def _with_norm_of_zero(script: Script) -> Script:
    """Penalise the distance from the first weights by its root, whose slope at zero is not finite."""
    first: dict[str, Tensor] = {}

    def penalised(model: nn.Module, loss: Tensor) -> Tensor:
        first.update({name: each.detach().clone() for name, each in model.named_parameters() if name not in first})
        squares = [(each - first[name]).square().sum() for name, each in model.named_parameters()]
        return loss + 0.01 * torch.stack(squares).sum().sqrt()

    return loss_with(script, penalised)


def _over_batch(script: Script) -> Script:
    """Attend over sequences, all of the same length and without a mask."""
    equal = data.language(shortest=nets.TOKENS) if script.build().is_causal else data.classified_texts(shortest=16)
    script = replace(script, batches=equal, prepare=(_transposed,))
    return each_batch(script, changes.without("attention_mask"))


def _transposed(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nets.Attention):
            module.split_heads = changes.heads_over_batch
            module.forward = lambda states, mask, is_causal, own=module: _forward_transposed(own, states, is_causal)


def _forward_transposed(module: nets.Attention, states: Tensor, is_causal: bool) -> Tensor:
    q, k, v = (changes.heads_over_batch(layer(states)) for layer in (module.q, module.k, module.v))
    attended = nets.attend(q, k, v, None, is_causal).transpose(1, 2).reshape(states.shape[1], states.shape[0], -1)
    return module.out(attended.transpose(0, 1))


def _torch_over_batch(script: Script) -> Script:
    script = replace(script, build=lambda: nets.TorchEncoder(batch_first=False))
    script = replace(script, batches=data.classified_texts(shortest=nets.TOKENS))
    return each_batch(script, changes.without("attention_mask"))


def _one_token_each(script: Script) -> Script:
    """Flatten inputs and labels to sequences of one token."""

    def change(batch: Batch) -> Batch:
        inputs = {"input_ids": batch["input_ids"][:, :-1], "attention_mask": batch["attention_mask"][:, :-1]}
        return changes.cut_into_tokens(inputs | {"labels": batch["labels"][:, 1:]})

    return replace(each_batch(script, change), loss=class_loss)


def _without_causal_mask(model: nn.Module) -> None:
    model.is_causal, model.make_mask = False, nets.padding_mask


def _bare_blocks(model: nn.Module) -> None:
    for block in changes.named(model, changes.LAYER):
        block.has_residuals = False
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()


def _without_residuals(script: Script) -> Script:
    def build() -> nn.Module:
        plain = script.build()
        return nets.Net(is_causal=plain.is_causal, classes=CLASSES if plain.is_pooled else None, layers=12)

    return replace(script, build=build, prepare=(_bare_blocks,))


_BERT_AS_DECODER = Script(architectures.bert("LMHeadModel"), data.language(), architectures.hf_loss)
_NORMALISED = (changes.on_outputs(changes.LAYER, lambda states: states / states.norm(dim=0, keepdim=True).clamp(1e-6)),)
_LEFT_WITHOUT_MASK = batchwise(changes.without("attention_mask"))
_ONE_OFF = changes.with_mask(lambda tokens: changes.square(tokens).tril(1))
_NO_MASK = batchwise(changes.without("attention_mask"))

FAULTS = (
    # Wiring
    Fault("optimizer of an older model", ("not_in_optimizer",), {ALL: _of_older_model}),
    Fault(
        "head replaced after the optimizer was made",
        ("not_in_optimizer",),
        {("own causal", *CLASSIFIERS, "llama"): prepared_late(changes.new_head)},
    ),
    Fault(
        "queries and keys not in the optimizer's groups",
        ("not_in_optimizer",),
        {ALL: optimized(chosen(changes.QUERIES_AND_KEYS, all_but=True))},
    ),
    Fault(
        "norms and biases in no group",
        ("not_in_optimizer",),
        {MIXED: optimized(chosen(changes.NORMS_AND_BIASES, all_but=True))},
    ),
    Fault("queries and keys frozen", ("frozen_parameters",), {ALL: prepared(changes.freeze(changes.QUERIES_AND_KEYS))}),
    Fault(
        "upper layer frozen, lower ones train",
        ("frozen_parameters",),
        {MIXED: prepared(changes.freeze(r".*(layers|blocks|block|h|layer)\.1\.(?!.*EncDec).*"))},
    ),
    Fault(
        "states detached between layers",
        ("broken_gradient_path", "no_gradient"),
        {ALL: prepared(changes.on_outputs(changes.LAYER, Tensor.detach, first_only=True))},
    ),
    Fault(
        "embeddings computed without gradients",
        ("no_gradient", "broken_gradient_path"),
        {
            ("own causal", "own encoder", "llama", "bert", "vit"): prepared(
                changes.on_outputs(changes.EMBEDDING, Tensor.detach)
            )
        },
    ),
    Fault(
        "no residual connections and norms in 12 layers",
        ("broken_gradient_path", "initialisation"),
        {OWN: _without_residuals},
    ),
    Fault(
        "eval mode from the start",
        ("eval_mode",),
        {tuple(name for name in ALL if name != "llama"): lambda script: replace(script, mode=lambda step: False)},
    ),
    # Flow
    Fault(
        "causal mask forgotten",
        ("future_leak",),
        {
            ("own causal",): prepared(_without_causal_mask),
            ("llama", "gpt2"): batchwise(changes.with_mask(changes.square)),
            ("bert",): lambda script: _BERT_AS_DECODER,
        },
    ),
    Fault("causal mask one off", ("future_leak",), {CAUSAL: batchwise(_ONE_OFF)}),
    Fault("mask not passed", ("padding_leak",), {MASKED: _NO_MASK}),
    Fault(
        "padding on the left without a mask",
        ("padding_leak",),
        {CAUSAL: lambda script: _LEFT_WITHOUT_MASK(replace(script, batches=data.language(side="left")))},
    ),
    Fault("mask inverted", ("mask_inverted",), {MASKED: batchwise(changes.inverted_mask)}),
    Fault(
        "mask of the other convention",
        ("mask_inverted",),
        {
            ("own encoder",): prepared(
                lambda model: setattr(model, "make_mask", lambda mask, tokens: mask[:, None, None, :] == 0)
            ),
            ("torch encoder",): prepared(lambda model: setattr(model, "key_padding_mask", lambda mask: mask == 1)),
        },
    ),
    Fault("attention over the batch", ("batch_mixing",), {OWN: _over_batch, ("torch encoder",): _torch_over_batch}),
    Fault(
        "states normalised over the batch",
        ("batch_mixing",),
        {("own causal", "own encoder", "llama", "gpt2", "bert", "t5"): prepared(*_NORMALISED)},
    ),
    Fault(
        "sequences cut into single tokens",
        ("blind_attention",),
        {("own causal",): _one_token_each, ("bert",): batchwise(changes.cut_into_tokens)},
    ),
    Fault(
        "what attention returns is lost",
        ("blind_attention", "no_gradient"),
        {
            ("own causal", "own encoder", "llama", "gpt2", "bert", "vit"): prepared(
                changes.on_outputs(changes.ATTENTION_OUTPUT, lambda states: 0 * states)
            )
        },
    ),
    Fault(
        "all tokens at the same position",
        ("order_ignored",),
        {
            ("bert", "bert classifier"): batchwise(changes.same_positions),
            ("own encoder",): prepared(changes.no_positions),
        },
    ),
    Fault(
        "scores multiplied by the root of the width",
        ("wrong_attention_scale", "initialisation"),
        {("own causal", "own encoder", "llama", "bert", "vit"): prepared(changes.with_scale(lambda width: width**0.5))},
    ),
    Fault(
        "weights with a deviation of 1",
        ("initialisation", "wrong_attention_scale"),
        {MIXED: prepared(changes.on_matrices(nn.init.normal_))},
    ),
    Fault(
        "weights of almost zero",
        ("initialisation", "broken_gradient_path"),
        {MIXED: prepared(changes.on_matrices(lambda weight: nn.init.normal_(weight, std=1e-5)))},
    ),
    # Loss and labels
    Fault("padding labelled", ("padding_in_loss",), {TOKEN_LABELS: batchwise(changes.labelled_padding())}),
    Fault("labels shifted twice", ("labels_shifted_twice",), {CAUSAL: batchwise(changes.shifted_labels)}),
    Fault(
        "gradient ascent",
        ("loss_rises",),
        {("own causal", "llama", "bert", "vit"): lambda script: loss_with(script, lambda model, loss: -loss)},
    ),
    # Optimization
    Fault("AdamW with a rate of 1", ("rate_too_high", "loss_rises"), {MIXED: optimized(adamw(1.0))}),
    Fault("AdamW with a rate of 1e-9", ("rate_too_low",), {MIXED: optimized(adamw(1e-9))}),
    Fault("SGD with a rate for Adam", ("rate_too_low",), {MIXED: optimized(sgd(1e-5))}),
    Fault(
        "warm-up that is never stepped",
        ("rate_too_low",),
        {MIXED: lambda script: replace(script, schedule=lambda step: 0.0)},
    ),
    Fault("bfloat16 weights with small steps", ("lost_updates",), {MIXED: half(torch.bfloat16, 1e-5)}),
    Fault("gradients never cleared", ("gradients_not_cleared",), {ALL: lambda script: replace(script, clear="never")}),
    Fault("weight decay of 100", ("weights_shrink",), {MIXED: optimized(adamw(weight_decay=100.0))}),
    Fault("root of zero in a penalty", ("nonfinite_gradient",), {MIXED: _with_norm_of_zero}),
    # Data
    Fault(
        "one batch over and over",
        ("repeated_batch",),
        {ALL: lambda script: replace(script, batches=circle(script.batches, 1), steps_per_epoch=100)},
    ),
    Fault(
        "three batches in a circle",
        ("repeated_batch",),
        {MIXED: lambda script: replace(script, batches=circle(script.batches, 3), steps_per_epoch=100)},
    ),
    Fault("labels all ignored", ("empty_batch",), {TOKEN_LABELS: batchwise(changes.no_labels)}),
    Fault("one class only", ("empty_batch",), {CLASSIFIERS: batchwise(changes.one_class)}),
)
