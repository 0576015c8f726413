"""Faults of losses, labels and batches of a fifth blind set, for those of `fifth`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import architectures, changes, data
from benchmarks.checkup.architectures import class_loss, hf_loss
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch
from benchmarks.checkup.edits import batchwise, prepared
from benchmarks.checkup.faults import CLASSIFIERS, MIXED, TOKEN_LABELS, Fault
from benchmarks.checkup.fifth_losses import (
    aligned,
    as_score,
    of_two_heads,
    preferring,
    taught,
    two_views,
    with_second_head,
)
from benchmarks.checkup.nets import CLASSES, FIRST_WORD, MASK, PAD, TOKENS, VOCABULARY, Net
from benchmarks.checkup.odd_models import tags
from benchmarks.checkup.scripts import Script, each_batch
from benchmarks.checkup.second_flow import DECODERS

_OF_CLASSES = (*CLASSIFIERS, "roberta classifier")
_ENCODERS: dict[str, tuple[str, dict[str, int]]] = {
    "bert": ("Bert", {}),
    "bert classifier": ("Electra", {"embedding_size": 16}),
    "roberta classifier": ("Roberta", {"max_position_embeddings": TOKENS + 1}),
}


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy with a gradient by hand, of which the sign is wrong."""

    @staticmethod
    def forward(context: Any, logits: Tensor, labels: Tensor) -> Tensor:
        context.save_for_backward(logits, labels)
        return F.cross_entropy(logits, labels)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = context.saved_tensors
        return gradient * (F.one_hot(labels, logits.shape[-1]) - logits.softmax(-1)) / len(labels), None


def _with_backward_by_hand(model: nn.Module, batch: Batch) -> Tensor:
    return _CrossEntropy.apply(*aligned(model, batch))


def _ignored_replaced(batch: Batch) -> Batch:
    """Replace ignored labels by padding in place, as the texts of a metric want it."""
    return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == IGNORED, PAD)}


def encoder_of_tokens(change: Callable[[Batch], Batch], kind: str, labels: int) -> dict[tuple[str, ...], Any]:
    """Return scripts of encoders with outputs for each token, whose batches of texts are changed."""

    def own(script: Script) -> Script:
        return each_batch(replace(script, build=lambda: Net(is_causal=False), loss=class_loss), change)

    def of(name: str) -> Callable[[Script], Script]:
        family, options = _ENCODERS[name]
        options = options if labels == VOCABULARY else options | {"num_labels": labels}
        build = architectures.bert(kind, family=family, **options)
        return lambda script: each_batch(Script(build, data.classified_texts(), hf_loss), change)

    return {("own encoder",): own} | {(name,): of(name) for name in _ENCODERS}


def _tags_one_early(batch: Batch) -> Batch:
    """Tag words without regard to the begin's token in front of them, so that each tag is one token early."""
    tagged = tags(batch)
    labels = tagged["labels"].roll(-1, 1)
    labels[:, -1] = IGNORED
    return tagged | {"labels": labels}


def hidden(batch: Batch, share: float = 0.25) -> Batch:
    """Hide some of the words."""
    ids = batch["input_ids"]
    is_hidden = (torch.rand(ids.shape) < share) & (ids >= FIRST_WORD)
    is_hidden[:, 2] = True
    return {
        "input_ids": ids.masked_fill(is_hidden, MASK),
        "attention_mask": batch["attention_mask"],
        "labels": ids.masked_fill(~is_hidden, IGNORED),
    }


def _hidden_shifted(model: nn.Module, batch: Batch) -> Tensor:
    """Compare hidden words with the outputs one token before, as for a model of next tokens."""
    logits, labels = logits_of(model, batch)[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _specials_hidden(batch: Batch) -> Batch:
    """Hide what is no word, by a mask of special tokens that is inverted."""
    ids = batch["input_ids"]
    is_hidden = (torch.rand(ids.shape) < 0.5) & (ids < FIRST_WORD) & (batch["attention_mask"] == 1)
    is_hidden[0, 0] = True
    return {
        "input_ids": ids.masked_fill(is_hidden, MASK),
        "attention_mask": batch["attention_mask"],
        "labels": ids.masked_fill(~is_hidden, IGNORED),
    }


def flipped(*, moves_labels: bool) -> Callable[[Batch], Batch]:
    """Return the change that turns images over at random, with the quarters that are their classes or without."""

    def change(batch: Batch) -> Batch:
        pixels, labels = batch["pixel_values"], batch["labels"]
        across, down = (torch.rand(2, len(labels)) < 0.5).long()
        pixels = torch.where(across[:, None, None, None] == 1, pixels.flip(3), pixels)
        pixels = torch.where(down[:, None, None, None] == 1, pixels.flip(2), pixels)
        return {"pixel_values": pixels, "labels": labels ^ (across + 2 * down) if moves_labels else labels}

    return change


def _words_shuffled(batch: Batch) -> Batch:
    """Draw half of each text's words anew, whose order is what the classes are about."""
    ids = batch["input_ids"]
    is_drawn = (torch.rand(ids.shape) < 0.5) & (ids >= FIRST_WORD)
    return batch | {"input_ids": torch.where(is_drawn, torch.randint_like(ids, FIRST_WORD, VOCABULARY), ids)}


def _share_as_whole_number(labels: Tensor) -> Tensor:
    return (labels / CLASSES).long().float()


def _with_softmax(model: nn.Module) -> None:
    """Let the model end in a softmax, though its loss takes logits."""
    name = next(each for each in ("head", "lm_head", "classifier") if hasattr(model, each))
    setattr(model, name, nn.Sequential(getattr(model, name), nn.Softmax(-1)))


def _zero_times_infinity(mask: Tensor, tokens: int) -> Tensor:
    return (1.0 - mask[:, None, None, :].float()) * float("-inf")


def _infinite_mask(batch: Batch) -> Batch:
    """Make the mask that is added by minus infinity times one less the mask."""
    mask = _zero_times_infinity(batch["attention_mask"], 0)
    return batch | {"attention_mask": mask.expand(-1, 1, mask.shape[-1], -1)}


def _own_infinite_mask(model: Net) -> None:
    model.make_mask = _zero_times_infinity


def unit(epsilon: float) -> Callable[[nn.Module], None]:
    """Return the change that gives embeddings a mean square of 1, by what is added to it."""

    def normed(states: Tensor) -> Tensor:
        return states * (states.square().mean(-1, keepdim=True) + epsilon).rsqrt()

    return changes.on_outputs(changes.EMBEDDING, normed)


DATA = (
    Fault(
        "backward of the loss with the wrong sign",
        ("loss_rises",),
        {MIXED: lambda script: replace(script, loss=_with_backward_by_hand)},
    ),
    Fault(
        "loss of the first head twice, none of the second",
        ("no_gradient",),
        {CLASSIFIERS: lambda script: replace(prepared(with_second_head)(script), loss=of_two_heads(uses_both=False))},
    ),
    Fault(
        "ignored labels replaced for a metric",
        ("padding_in_loss",),
        {(*TOKEN_LABELS, "bart"): batchwise(_ignored_replaced)},
    ),
    Fault(
        "preferences by sums over padding too",
        ("padding_in_loss",),
        {DECODERS: lambda script: replace(script, loss=preferring(over_padding=True))},
    ),
    Fault(
        "tags one token early",
        ("labels_shifted_twice",),
        encoder_of_tokens(_tags_one_early, "ForTokenClassification", 2),
    ),
    Fault(
        "loss of next tokens for hidden words",
        ("labels_shifted_twice",),
        {
            names: lambda script, change=change: replace(change(script), loss=_hidden_shifted)
            for names, change in encoder_of_tokens(hidden, "ForMaskedLM", VOCABULARY).items()
        },
    ),
    Fault(
        "special tokens hidden only", ("empty_batch",), encoder_of_tokens(_specials_hidden, "ForMaskedLM", VOCABULARY)
    ),
    Fault(
        "labels of two views in another order",
        ("labels_unrelated",),
        {_OF_CLASSES: lambda script: replace(script, loss=two_views(in_same_order=False))},
    ),
    Fault(
        "augmentation that changes the class",
        ("labels_unrelated",),
        {
            ("vit",): batchwise(flipped(moves_labels=False)),
            ("own encoder", "torch encoder", "bert classifier", "roberta classifier"): batchwise(_words_shuffled),
        },
    ),
    Fault(
        "shares cast to whole numbers",
        ("empty_batch",),
        {_OF_CLASSES: lambda script: replace(script, loss=as_score(_share_as_whole_number))},
    ),
    Fault(
        "softmax as the last layer of the model",
        ("double_softmax",),
        {("own causal", "own encoder", "torch encoder", "llama", "bert classifier", "vit"): prepared(_with_softmax)},
    ),
    Fault(
        "probabilities of the student compared with the teacher's",
        ("double_softmax",),
        {DECODERS: taught(of_logits=False)},
    ),
    Fault(
        "zeros of the mask times minus infinity",
        ("nonfinite_gradient",),
        {
            ("own encoder",): prepared(_own_infinite_mask),
            ("bert", "bert classifier", "roberta classifier", "llama"): batchwise(_infinite_mask),
        },
    ),
    Fault(
        "embeddings divided by their mean square without an epsilon",
        ("nonfinite_gradient",),
        {("llama", "bert", "bert classifier", "roberta classifier", "qwen2"): prepared(unit(0.0))},
    ),
)
