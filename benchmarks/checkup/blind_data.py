"""Faults of labels, losses and batches that no check was tuned on."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.checkup import architectures
from benchmarks.checkup.architectures import class_loss, hf_loss
from benchmarks.checkup.data import IGNORED, Batch, Batches
from benchmarks.checkup.edits import batchwise, replace_batches
from benchmarks.checkup.faults import CAUSAL, CLASSIFIERS, Fault
from benchmarks.checkup.nets import MASK, Net
from benchmarks.checkup.odd_models import tags
from benchmarks.checkup.scripts import Script, each_batch

_DECODERS = (*CAUSAL, "qwen2", "opt")
_OF_TEXTS = ("own encoder", "torch encoder", "bert classifier", "roberta classifier")


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of any model; labels are given where a decoder takes its inputs from them."""
    is_decoder_apart = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    output = model(**(batch if is_decoder_apart else {key: each for key, each in batch.items() if key != "labels"}))
    return getattr(output, "logits", output)


def _aligned(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits and the labels that belong to them."""
    logits, labels = logits_of(model, batch), batch["labels"]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return logits, labels
    return logits[:, :-1], labels[:, 1:]


def _clamped(model: nn.Module, batch: Batch) -> Tensor:
    """Gather by labels of at least 0, and average over padding too."""
    logits, labels = _aligned(model, batch)
    return -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).mean()


def _log_of_masked(model: nn.Module, batch: Batch) -> Tensor:
    """Take the logarithm of probabilities that a mask has set to zero, and drop it afterwards."""
    logits, labels = _aligned(model, batch)
    is_real = labels != IGNORED
    probabilities = logits.softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * is_real
    return -torch.where(is_real, probabilities.log(), 0.0).sum() / is_real.sum()


def _with_distances(script: Script) -> Script:
    """Pull outputs together by the roots of their squared distances, of which those to themselves are zero."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        outputs = logits_of(model, batch)
        distances = (outputs[:, None] - outputs).square().sum(-1).sqrt()
        return script.loss(model, batch) + 0.01 * distances.mean()

    return replace(script, loss=loss)


def _tagged_padding(batch: Batch) -> Batch:
    """Give padding the first tag."""
    return batch | {"labels": tags(batch)["labels"].clamp(min=0)}


def _tagger(family: str, **options: int) -> Script:
    build = architectures.bert("ForTokenClassification", family, num_labels=2, **options)
    return each_batch(Script(build, architectures.data.classified_texts(), hf_loss), _tagged_padding)


def _own_tagger(script: Script) -> Script:
    return each_batch(replace(script, build=lambda: Net(is_causal=False), loss=class_loss), _tagged_padding)


def _cut_inputs(batch: Batch) -> Batch:
    """Leave out the last token of inputs and the first of labels, for a model that shifts them itself."""
    ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
    return {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "labels": labels[:, 1:].contiguous()}


def _sorted_texts(batch: Batch) -> Batch:
    """Sort texts by length, and leave the labels as they are."""
    order = batch["attention_mask"].sum(1).argsort(descending=True)
    return batch | {name: batch[name][order] for name in ("input_ids", "attention_mask")}


def _labels_of_other_loader(batches: Batches) -> Batches:
    def paired(seed: int) -> Iterator[Batch]:
        for batch, other in zip(batches(seed), batches(seed + 1000), strict=False):
            yield batch | {"labels": other["labels"]}

    return paired


def _one_batch_in_new_orders(batches: Batches) -> Batches:
    def shuffled(seed: int) -> Iterator[Batch]:
        random, batch = torch.Generator().manual_seed(seed), next(batches(seed))
        for _ in itertools.count():
            order = torch.randperm(len(next(iter(batch.values()))), generator=random)
            yield {name: value[order] for name, value in batch.items()}

    return shuffled


def _first_tokens(batch: Batch) -> Batch:
    return {name: value[:, :1] for name, value in batch.items()}


def _unknown_words(batch: Batch) -> Batch:
    return batch | {"input_ids": torch.where(batch["attention_mask"] == 1, MASK, batch["input_ids"])}


def _shuffled_once(script: Script) -> Script:
    return replace(replace_batches(script, _one_batch_in_new_orders), steps_per_epoch=100)


def _sorted_by_length(script: Script) -> Script:
    return each_batch(script, _sorted_texts)


def _of_other_loader(script: Script) -> Script:
    return replace_batches(script, _labels_of_other_loader)


DATA_FAULTS = (
    Fault(
        "labels gathered from 0, padding averaged",
        ("padding_in_loss",),
        {(*_DECODERS, "t5", "bart"): lambda script: replace(script, loss=_clamped)},
    ),
    Fault(
        "padding tagged as outside",
        ("padding_in_loss",),
        {
            ("own encoder",): _own_tagger,
            ("bert",): lambda script: _tagger("Bert"),
            ("bert classifier",): lambda script: _tagger("Electra", embedding_size=16),
            ("roberta classifier",): lambda script: _tagger("Roberta", max_position_embeddings=17),
        },
    ),
    Fault("inputs and labels cut, then shifted", ("labels_shifted_twice",), {_DECODERS: batchwise(_cut_inputs)}),
    Fault("texts sorted by length, labels not", ("labels_unrelated",), {_OF_TEXTS: _sorted_by_length}),
    Fault(
        "labels of another loader",
        ("labels_unrelated",),
        {(*CLASSIFIERS, "roberta classifier"): _of_other_loader},
    ),
    Fault(
        "roots of distances to oneself",
        ("nonfinite_gradient",),
        {(*CLASSIFIERS, "sentence encoder"): _with_distances},
    ),
    Fault(
        "logarithm of masked probabilities",
        ("nonfinite_gradient",),
        {_DECODERS: lambda script: replace(script, loss=_log_of_masked)},
    ),
    Fault(
        "one batch in new orders",
        ("repeated_batch",),
        {("own causal", "own encoder", "llama", "bert classifier", "t5", "vit"): _shuffled_once},
    ),
    Fault("texts cut to one token", ("empty_batch", "nonfinite_gradient"), {_DECODERS: batchwise(_first_tokens)}),
    Fault(
        "all words unknown",
        ("empty_batch", "labels_unrelated"),
        {_OF_TEXTS: batchwise(_unknown_words)},
    ),
)
