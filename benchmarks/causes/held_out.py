"""Faults, tasks and architectures on which no weight of a cause was tuned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
import transformers as hf
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from benchmarks.causes.scores import names_of
from benchmarks.checkup import changes
from benchmarks.checkup.architectures import hf_loss
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, chosen, half, loss_with, optimized, prepared, sgd
from benchmarks.checkup.scripts import Case, Change, Script, adamw, circle
from benchmarks.checkup.work import all_cases

_RATE = 1e-3
_BLIND_STRIDE = 6
_ATTENTION = r".*(attention|attn)\..*"
_SYMBOLS, _REVERSED, _WORDS, _LONGEST, _MARKERS = 24, 10, 30, 24, 3
_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 96}


def _reversals(seed: int) -> Iterator[Batch]:
    """Yield symbols, a separator, and the symbols from the last to the first."""
    random = Generator().manual_seed(seed)
    while True:
        part = torch.randint(_SYMBOLS, (16, _REVERSED), generator=random)
        ids = torch.cat([part, torch.full((16, 1), _SYMBOLS), part.flip(1)], 1)
        labels = ids.clone()
        labels[:, : _REVERSED + 1] = -100
        yield {"input_ids": ids, "labels": labels}


def _majorities(seed: int) -> Iterator[Batch]:
    """Yield texts whose class is the most frequent of three markers, padded on the right."""
    random = Generator().manual_seed(seed)
    while True:
        classes = torch.randint(_MARKERS, (16,), generator=random)
        ids = torch.randint(1 + _MARKERS, _WORDS, (16, _LONGEST), generator=random)
        is_marker = torch.rand(ids.shape, generator=random) < 0.5
        own = torch.rand(ids.shape, generator=random) < 0.6
        any_marker = torch.randint(_MARKERS, ids.shape, generator=random)
        ids = torch.where(is_marker, 1 + torch.where(own, classes[:, None], any_marker), ids)
        lengths = torch.randint(_LONGEST // 2, _LONGEST + 1, (16, 1), generator=random)
        mask = (torch.arange(_LONGEST) < lengths).long()
        yield {"input_ids": ids * mask, "attention_mask": mask, "labels": classes}


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images)[:, None].float() / 16, torch.from_numpy(data.target)


def _handwritten(seed: int) -> Iterator[Batch]:
    """Yield handwritten digits of 8 x 8 pixels."""
    random, (images, labels) = Generator().manual_seed(seed), _digits()
    while True:
        chosen_ones = torch.randint(len(labels), (16,), generator=random)
        yield {"pixel_values": images[chosen_ones], "labels": labels[chosen_ones]}


def _neox() -> nn.Module:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_SIZES, vocab_size=_SYMBOLS + 1, max_position_embeddings=32))


def _distilbert() -> nn.Module:
    sizes = {"n_layers": 3, "n_heads": 4, "dim": 48, "hidden_dim": 96, "max_position_embeddings": _LONGEST}
    config = hf.DistilBertConfig(**sizes, vocab_size=_WORDS, num_labels=_MARKERS, pad_token_id=0)
    return hf.DistilBertForSequenceClassification(config)


def _deit() -> nn.Module:
    config = hf.DeiTConfig(**_SIZES, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    return hf.DeiTForImageClassification(config)


SCRIPTS = {
    "neox": Script(_neox, _reversals, hf_loss, adamw(_RATE), clip=1.0),
    "distilbert": Script(_distilbert, _majorities, hf_loss, adamw(_RATE), clip=1.0),
    "deit": Script(_deit, _handwritten, hf_loss, adamw(_RATE), clip=1.0),
}
_ALL = tuple(SCRIPTS)


@dataclass(frozen=True)
class OtherFault:
    """A fault on some of `SCRIPTS`.

    Attributes:
        name: of the fault.
        causes: names of the cause, the first one as it was made, then others that are the same mistake.
        change: of a sound script.
        scripts: names of the scripts.
    """

    name: str
    causes: tuple[str, ...]
    change: Change
    scripts: tuple[str, ...] = _ALL


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.mul_(factor)


def _scheduled(schedule: Callable[[int], float]) -> Change:
    return lambda script: replace(script, schedule=schedule)


def _rolled(batch: Batch) -> Batch:
    return batch | {"labels": batch["labels"].roll(1, 0)}


def _two_in_turn(script: Script) -> Script:
    return replace(script, batches=circle(script.batches, 2))


def _itself_only(model: nn.Module) -> None:
    """Let each token of a classifier see itself."""
    forward = model.forward

    def blind(input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> object:
        tokens = torch.eye(input_ids.shape[1], dtype=torch.bool)
        return forward(input_ids=input_ids, attention_mask=tokens.expand(len(input_ids), 1, -1, -1), **others)

    model.forward = blind


OTHER_FAULTS = (
    OtherFault("rate 100 times too high", ("rate_too_high",), optimized(adamw(100 * _RATE))),
    OtherFault("rate that doubles every 12 steps", ("rate_too_high",), _scheduled(lambda step: 2 ** (step / 12))),
    OtherFault("SGD with momentum and a rate of 30", ("rate_too_high",), optimized(sgd(30.0, momentum=0.9), clip=None)),
    OtherFault("rate 1,000 times too low", ("rate_too_low",), optimized(adamw(_RATE / 1000))),
    OtherFault("rate 50 times too low", ("rate_too_low",), optimized(adamw(_RATE / 50))),
    OtherFault("rate of 0 after a fifth", ("rate_too_low",), _scheduled(lambda step: float(step < 32))),
    OtherFault(
        "attention in no group", ("not_in_optimizer", "frozen_parameters"), optimized(chosen(_ATTENTION, all_but=True))
    ),
    OtherFault(
        "all but the head frozen",
        ("frozen_parameters", "not_in_optimizer"),
        prepared(changes.freeze(r"(embed_out|lm_head|pre_classifier|classifier)\..*", all_but=True)),
    ),
    OtherFault("matrices 15 times too large", ("initialisation",), prepared(changes.on_matrices(_times(15.0)))),
    OtherFault("matrices 300 times too small", ("initialisation",), prepared(changes.on_matrices(_times(1 / 300)))),
    OtherFault(
        "scores multiplied by the width",
        ("wrong_attention_scale", "initialisation"),
        prepared(changes.with_scale(lambda width: 300.0)),
        ("neox", "deit"),
    ),
    OtherFault(
        "scores divided by the width three times",
        ("wrong_attention_scale", "initialisation"),
        prepared(changes.with_scale(lambda width: width**-3.0)),
        ("neox", "deit"),
    ),
    OtherFault("labels of the next sample", ("labels_unrelated",), batchwise(_rolled)),
    OtherFault("two batches in turn", ("repeated_batch",), _two_in_turn),
    OtherFault("weights in float16", ("nonfinite_gradient",), half(torch.float16, _RATE)),
    OtherFault("weight decay of 60", ("weights_shrink",), optimized(adamw(_RATE, weight_decay=60.0))),
    OtherFault("reward instead of loss", ("loss_rises",), lambda script: loss_with(script, lambda model, loss: -loss)),
    OtherFault("mask of padding inverted", ("mask_inverted",), batchwise(changes.inverted_mask), ("distilbert",)),
    OtherFault("each token sees itself", ("blind_attention",), prepared(_itself_only), ("distilbert",)),
    OtherFault(
        "gradients never cleared",
        ("gradients_not_cleared", "rate_too_high"),
        lambda script: replace(script, clear="never", clip=None),
    ),
)


def other_cases() -> list[Case]:
    """Return the other faults on other tasks and architectures."""
    return [
        Case(fault.name, name, fault.change(SCRIPTS[name]), fault.causes)
        for fault in OTHER_FAULTS
        for name in fault.scripts
    ]


def blind_cases() -> list[Case]:
    """Return some of the faults of the blind sets of `benchmarks.checkup`, those that are the name of a cause."""
    return [case for case in all_cases() if case.part != "tuned-on" and names_of(case)][::_BLIND_STRIDE]
