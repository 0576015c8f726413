"""Faults on which nothing is tuned: written after the checks, and not looked at while they change."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.checkup import changes, nets
from benchmarks.checkup.data import Batch, Batches
from benchmarks.checkup.edits import (
    batchwise,
    half,
    loss_with,
    optimized,
    prepared,
    prepared_late,
    replace_batches,
    sgd,
)
from benchmarks.checkup.faults import ALL, CAUSAL, CLASSIFIERS, MASKED, MIXED, OWN, TOKEN_LABELS, Fault
from benchmarks.checkup.nets import END, Attention
from benchmarks.checkup.scripts import Script, adamw

_LATE = 4


def _woken_up(script: Script) -> Script:
    """Unfreeze layers at a step, which the optimizer was not given."""

    def wake(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == _LATE:
            model.requires_grad_(True)

    return replace(script, prepare=(changes.freeze(changes.LAYER + r"\..*"),), before_step=wake)


def _part_in_eval(script: Script) -> Script:
    def keep(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        for layer in changes.named(model, changes.LAYER):
            layer.eval()

    return replace(script, before_step=keep)


def _over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -1e9).softmax(-2) @ v


def _without_care(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def _added(model: nn.Module) -> None:
    """Add the mask of zeros and ones to the scores."""
    model.make_mask = lambda mask, tokens: mask[:, None, None, :].float()


def _one_empty_text(batch: Batch) -> Batch:
    mask, ids = batch["attention_mask"].clone(), batch["input_ids"].clone()
    mask[-1], ids[-1] = 0, nets.PAD
    return batch | {"attention_mask": mask, "input_ids": ids}


def _twice(batches: Batches) -> Batches:
    return lambda seed: (batch for each in batches(seed) for batch in (each, each))


def _at_one_step(change: Callable[[Batch], Batch]) -> Callable[[Batches], Batches]:
    def with_batches(batches: Batches) -> Batches:
        def changed(seed: int) -> Iterator[Batch]:
            for step, batch in zip(itertools.count(), batches(seed)):
                yield change(batch) if step == _LATE else batch

        return changed

    return with_batches


def _halves(model: nn.Module) -> list[Optimizer]:
    parameters = list(model.parameters())
    middle = len(parameters) // 2
    return [AdamW(parameters[:middle], 1e-3), AdamW(parameters[middle:], 1e-3)]


def _clear_first(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    optimizers[0].zero_grad()


def _same_patch_positions(model: nn.Module) -> None:
    embeddings = model.vit.embeddings
    embeddings.position_embeddings = nn.Parameter(embeddings.position_embeddings[:, :1].detach().clone())


def _same_position(model: nn.Module) -> None:
    model.positions_of = lambda tokens: model.positions[:, :1]


def _shuffled(batch: Batch) -> Batch:
    return batch | {"labels": batch["labels"][torch.randperm(len(batch["labels"]))]}


def _centred(states: Tensor) -> Tensor:
    return states - states.mean(1, keepdim=True)


def _over_the_batch(states: Tensor) -> Tensor:
    return states - states.mean(0, keepdim=True)


def _detached_encoder(pattern: str) -> Callable[[Script], Script]:
    return prepared(changes.on_outputs(pattern, Tensor.detach))


_LAST = r"(norm|model\.norm|transformer\.ln_f|bert\.encoder\.layer\.1|encoder\.final_layer_norm|vit\.layernorm)"
_WRONG_SIDE = batchwise(lambda batch: batch | {"attention_mask": batch["attention_mask"].flip(1)})
_ITSELF = batchwise(changes.with_mask(lambda tokens: torch.eye(tokens, dtype=torch.bool)))
_TOO_LARGE = changes.on_modules(changes.EMBEDDING, lambda module: nn.init.normal_(module.weight, std=30.0))
_OF_QUERIES = r".*\.(q|k|q_proj|k_proj|query|key)"

HELD_OUT = (
    # Wiring
    Fault(
        "layers' parameters made anew after the optimizer",
        ("not_in_optimizer",),
        {MIXED: prepared_late(changes.parameters_made_anew)},
    ),
    Fault(
        "layers unfrozen that no optimizer was given",
        ("not_in_optimizer",),
        {("llama", "gpt2", "bert classifier", "vit", "own encoder"): _woken_up},
    ),
    Fault(
        "values and outputs frozen",
        ("frozen_parameters",),
        {("own causal", "llama", "bert", "t5", "vit"): prepared(changes.freeze(changes.VALUES_AND_OUTPUTS))},
    ),
    Fault("feed-forward frozen", ("frozen_parameters",), {MIXED: prepared(changes.freeze(changes.FEED_FORWARD))}),
    Fault(
        "queries and keys detached",
        ("no_gradient", "broken_gradient_path"),
        {
            ("own causal", "own encoder", "llama", "bert", "t5", "vit"): prepared(
                changes.on_outputs(_OF_QUERIES, Tensor.detach)
            )
        },
    ),
    Fault(
        "encoder's states detached",
        ("broken_gradient_path", "no_gradient"),
        {
            ("own causal", "own encoder", "gpt2", "bert", "t5", "vit"): _detached_encoder(_LAST),
            ("bart",): _detached_encoder(r"model\.encoder\.layers\.1"),
        },
    ),
    Fault(
        "eval mode after an evaluation",
        ("eval_mode",),
        {("own causal", "gpt2", "bert", "t5", "vit"): lambda script: replace(script, mode=lambda step: step < _LATE)},
    ),
    Fault(
        "layers that train stay in eval mode",
        ("eval_mode",),
        {("own encoder", "gpt2", "bert classifier", "t5", "vit"): _part_in_eval},
    ),
    # Flow
    Fault(
        "softmax over the queries",
        ("future_leak",),
        {("own causal",): prepared(changes.with_attributes(Attention, attend=_over_queries))},
    ),
    Fault(
        "heads taken apart without a transpose",
        ("future_leak",),
        {("own causal",): prepared(changes.with_attributes(Attention, split_heads=changes.heads_not_transposed))},
    ),
    Fault(
        "states centred over the tokens",
        ("future_leak",),
        {CAUSAL: prepared(changes.on_outputs(changes.LAYER, _centred, first_only=True))},
    ),
    Fault(
        "mask of zeros and ones added to the scores",
        ("padding_leak",),
        {
            ("own encoder",): prepared(_added),
            ("torch encoder",): prepared(lambda model: setattr(model, "key_padding_mask", lambda mask: mask.float())),
        },
    ),
    Fault("mask for padding on the other side", ("mask_inverted", "padding_leak"), {MASKED: _WRONG_SIDE}),
    Fault(
        "states centred over the batch",
        ("batch_mixing",),
        {
            ("own causal", "llama", "gpt2", "bert", "own encoder"): prepared(
                changes.on_outputs(changes.LAYER, _over_the_batch, first_only=True)
            )
        },
    ),
    Fault("each token sees itself only", ("blind_attention",), {(*CAUSAL, "bert"): _ITSELF}),
    Fault(
        "decoder with all tokens at the same position",
        ("order_ignored",),
        {("own causal",): prepared(changes.no_positions), ("llama", "gpt2"): batchwise(changes.same_positions)},
    ),
    Fault(
        "first position added to all",
        ("order_ignored",),
        {
            ("vit",): prepared(_same_patch_positions),
            ("torch encoder",): prepared(_same_position),
            ("own encoder",): prepared(changes.no_positions),
        },
    ),
    Fault(
        "scores divided by the square of the width",
        ("wrong_attention_scale",),
        {
            ("own causal", "own encoder", "llama", "bert", "vit"): prepared(
                changes.with_scale(lambda width: width**-2.0)
            )
        },
    ),
    Fault("embeddings never initialised", ("initialisation",), {CAUSAL: prepared(_TOO_LARGE)}),
    Fault(
        "logits multiplied by 300",
        ("initialisation",),
        {
            ("own causal", "own encoder", "llama", "gpt2", "vit"): prepared(
                changes.on_outputs("head|lm_head|classifier", lambda logits: 300 * logits)
            )
        },
    ),
    # Loss and labels
    Fault("padding labelled as end of text", ("padding_in_loss",), {CAUSAL: batchwise(changes.labelled_padding(END))}),
    Fault("labels of other samples", ("labels_unrelated",), {CLASSIFIERS: batchwise(_shuffled)}),
    # Optimization
    Fault(
        "rate that falls tenfold at each step",
        ("rate_too_low",),
        {MIXED: lambda script: replace(script, schedule=lambda step: 0.1**step)},
    ),
    Fault(
        "scaled loss that is never unscaled",
        ("rate_too_high", "loss_rises"),
        {MIXED: lambda script: optimized(sgd(0.1))(loss_with(script, lambda model, loss: 65536 * loss))},
    ),
    Fault(
        "float16 weights with small steps",
        ("lost_updates", "nonfinite_gradient"),
        {("own causal", "llama", "gpt2", "bert", "vit"): half(torch.float16, 1e-6)},
    ),
    Fault(
        "gradients cleared before the step",
        ("no_gradient", "rate_too_low"),
        {MIXED: lambda script: replace(script, clear="between")},
    ),
    Fault(
        "one of two optimizers not cleared",
        ("gradients_not_cleared",),
        {MIXED: optimized(_halves, clear="never", after_step=_clear_first)},
    ),
    Fault("L2 penalty of 5 in SGD", ("weights_shrink",), {MIXED: optimized(sgd(0.1, weight_decay=5.0))}),
    Fault(
        "softmax over masked scores only",
        ("nonfinite_gradient",),
        {
            ("own encoder",): lambda script: prepared(changes.with_attributes(Attention, attend=_without_care))(
                batchwise(_one_empty_text)(script)
            )
        },
    ),
    # Data
    Fault(
        "one batch without labels",
        ("empty_batch", "nonfinite_gradient"),
        {
            TOKEN_LABELS: lambda script: replace_batches(script, _at_one_step(changes.no_labels)),
        },
    ),
    Fault(
        "each batch twice",
        ("repeated_batch",),
        {ALL: lambda script: replace(replace_batches(script, _twice), steps_per_epoch=100)},
    ),
    Fault(
        "batches of padding only",
        ("empty_batch",),
        {("own encoder", "torch encoder", "bert classifier", "t5"): batchwise(changes.padding_only)},
    ),
    Fault("AdamW with a rate in percent", ("rate_too_high", "loss_rises"), {OWN: optimized(adamw(0.3))}),
)
