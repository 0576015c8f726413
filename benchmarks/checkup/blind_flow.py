"""Faults of masks, positions and scales that no check was tuned on."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import architectures, attentions, changes, data, nets
from benchmarks.checkup.architectures import SentenceEncoder, pair_loss
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, prepared
from benchmarks.checkup.faults import CAUSAL, MIXED, Fault
from benchmarks.checkup.nets import CLASSES, END, TorchEncoder
from benchmarks.checkup.scripts import Change, Script

_ATTENDED = ("own causal", "own encoder", "llama", "gpt2", "bert", "vit")
_SCALED = ("own causal", "own encoder", "llama", "bert", "vit")
_CLASSIFIERS_OF_HF = ("bert", "bert classifier", "roberta classifier")


def plain_mean(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mean over all tokens, padding too."""
    return states.mean(1)


class _MeanOfAll(TorchEncoder):
    """Encoder of PyTorch's layers with the mean over all tokens."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.tokens(input_ids) + self.positions_of(input_ids.shape[1])
        return self.head(self.encoder(states, src_key_padding_mask=self.key_padding_mask(attention_mask)).mean(1))


def _mean_of_all(model: nn.Module) -> None:
    model.pooled = lambda input_ids, mask=None: model.encode(model.embed(input_ids), mask).mean(1)


def _roberta_with_plain_mean(script: Script) -> Script:
    sizes = {"max_position_embeddings": nets.TOKENS + 1, "add_pooling_layer": False}
    build = partial(SentenceEncoder, architectures.bert("Model", "Roberta", **sizes))
    return Script(build, data.pairs, pair_loss, prepare=(lambda model: setattr(model, "pool", plain_mean),))


def _added_mask(real: float, padding: float) -> dict[tuple[str, ...], Change]:
    """Return the changes of scripts that add these numbers to the scores of real tokens and of padding."""

    def added(mask: Tensor) -> Tensor:
        return mask * real + (1 - mask) * padding

    def four_axes(batch: Batch) -> Batch:
        size, tokens = batch["input_ids"].shape
        return batch | {
            "attention_mask": added(batch["attention_mask"])[:, None, None, :].expand(size, 1, tokens, tokens)
        }

    def own(model: nn.Module) -> None:
        model.make_mask = lambda mask, tokens: added(mask)[:, None, None, :]

    return {
        ("own encoder",): prepared(own),
        ("torch encoder",): prepared(lambda model: setattr(model, "key_padding_mask", added)),
        _CLASSIFIERS_OF_HF: batchwise(four_axes),
    }


def _class_at_the_end(script: Script) -> Script:
    """Read the class at the last place of each row, where short texts have padding."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cross_entropy(getattr(output, "logits", output)[:, -1, :CLASSES], batch["labels"])

    return replace(script, batches=data.classified_texts(), loss=loss)


def _mask_of_other_padding(batch: Batch) -> Batch:
    return batch | {"attention_mask": (batch["input_ids"] != END).long()}


def _without_attention_in_training(model: nn.Module) -> None:
    for module in changes.named(model, changes.ATTENTION_OUTPUT):
        module.register_forward_hook(lambda each, inputs, output: F.dropout(output, 1.0, each.training))


def _empty_table(model: nn.Module) -> None:
    tables = [each for name, each in model.named_parameters() if "position" in name]
    if not tables:
        raise LookupError(f"{type(model).__name__} has no positions.")
    for table in tables:
        nn.init.zeros_(table)
        table.requires_grad_(False)


def _positions_of_rows(batch: Batch) -> Batch:
    return batch | {"position_ids": torch.arange(len(batch["input_ids"]))[:, None].expand_as(batch["input_ids"])}


def _positions_over_batch(model: nn.Module) -> None:
    """Count positions along the first axis, as for batches with the tokens first."""
    model.embed = lambda ids: model.dropout(model.tokens(ids) + model.positions(torch.arange(len(ids)))[:, None])


def _tied_and_large(model: nn.Module) -> None:
    changes.on_modules(changes.EMBEDDING, lambda module: nn.init.normal_(module.weight))(model)
    if isinstance(model, nets.Net):
        model.head.weight = model.tokens.weight


def _norms_of_zero(model: nn.Module) -> None:
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    for norm in norms:
        nn.init.zeros_(norm.weight)


_SHIFT = changes.on_outputs(changes.EMBEDDING, lambda states: states + states.roll(-1, 1))
_CONTEXT = changes.on_outputs(changes.LAYER, lambda states: states + states.mean((0, 1), keepdim=True), first_only=True)

FLOW_FAULTS = (
    Fault(
        "triangle of the mask the wrong way round",
        ("future_leak",),
        {(*CAUSAL, "qwen2"): batchwise(changes.with_mask(lambda tokens: changes.square(tokens).triu()))},
    ),
    Fault("tokens shifted the wrong way", ("future_leak",), {(*CAUSAL, "qwen2", "opt"): prepared(_SHIFT)}),
    Fault(
        "mean over padding too",
        ("padding_leak",),
        {
            ("own encoder",): prepared(_mean_of_all),
            ("torch encoder",): lambda script: replace(script, build=_MeanOfAll),
            ("sentence encoder",): prepared(lambda model: setattr(model, "pool", plain_mean)),
            ("roberta classifier",): _roberta_with_plain_mean,
        },
    ),
    Fault("padding's scores lowered by 1 only", ("padding_leak",), _added_mask(0.0, -1.0)),
    Fault(
        "class read at the last place, which is padding",
        ("padding_leak",),
        {(*CAUSAL, "qwen2", "opt"): _class_at_the_end},
    ),
    Fault(
        "mask made from another padding token",
        ("padding_leak",),
        {
            (
                "own encoder",
                "torch encoder",
                "bert",
                "bert classifier",
                "t5",
                "sentence encoder",
            ): batchwise(_mask_of_other_padding)
        },
    ),
    Fault("added mask with the wrong sign", ("mask_inverted",), _added_mask(-1e4, 0.0)),
    Fault(
        "softmax over the first axis",
        ("batch_mixing",),
        {_ATTENDED: prepared(attentions.by_hand(attentions.over_first_axis))},
    ),
    Fault(
        "context averaged over batch and tokens",
        ("batch_mixing",),
        {("own encoder", "bert", "bert classifier", "vit", "sentence encoder"): prepared(_CONTEXT)},
    ),
    Fault(
        "attention from head to head",
        ("blind_attention",),
        {_ATTENDED: prepared(attentions.by_hand(attentions.over_heads))},
    ),
    Fault(
        "share to keep given as dropout of attention",
        ("blind_attention", "no_gradient"),
        {(*_ATTENDED, "t5"): prepared(_without_attention_in_training)},
    ),
    Fault(
        "table of positions empty and frozen",
        ("order_ignored",),
        {
            ("own encoder", "torch encoder", "bert", "bert classifier", "vit", "sentence encoder"): prepared(
                _empty_table
            )
        },
    ),
    Fault(
        "positions counted along the batch",
        ("order_ignored",),
        {
            ("own encoder", "own causal"): prepared(_positions_over_batch),
            ("bert", "bert classifier", "llama", "gpt2"): batchwise(_positions_of_rows),
        },
    ),
    Fault(
        "scores divided by a temperature of 0.001",
        ("wrong_attention_scale", "initialisation"),
        {_SCALED: prepared(changes.with_scale(lambda width: 1000 * width**-0.5))},
    ),
    Fault(
        "cosines divided by the root of the width",
        ("wrong_attention_scale",),
        {_ATTENDED: prepared(attentions.by_hand(attentions.of_cosines))},
    ),
    Fault(
        "tied embeddings with a deviation of 1",
        ("initialisation",),
        {
            ("own causal", "gpt2", "bert", "opt"): prepared(_tied_and_large),
            ("llama",): lambda script: prepared(_tied_and_large)(
                replace(script, build=architectures.llama(tie_word_embeddings=True))
            ),
        },
    ),
    Fault(
        "all weights the same number",
        ("initialisation",),
        {MIXED: prepared(changes.on_matrices(lambda weight: nn.init.constant_(weight, 0.05)))},
    ),
    Fault(
        "norms with weights of zero",
        ("initialisation", "no_gradient", "broken_gradient_path"),
        {("own causal", "torch encoder", "llama", "gpt2", "bert", "t5", "vit"): prepared(_norms_of_zero)},
    ),
)
