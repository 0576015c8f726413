"""Batches made into examples: states of tokens or of whole sequences, with the labels of each target."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.states import Read
from attnwatch.explain.probing.targets import (
    IGNORED,
    LABEL,
    LABEL_AT_FIRST,
    is_language_model,
    labels_of_tokens,
)
from attnwatch.explain.subject import Batch, labels_of, token_mask

_NO_LABELS = "there are no labels in the batches"
_LABELS_ARE_TOKENS = "there are no labels but the tokens: the task is next_token"
_NOTHING_MISSED = (_NO_LABELS, _LABELS_ARE_TOKENS)


@dataclass(frozen=True)
class Labels:
    """Of one target, for all batches.

    Attributes:
        of_batches: int64 [batch, tokens], or [batch] where they are of sequences; negative: ignored.
        is_given: by the user or the task, so that no class may be left out.
    """

    of_batches: list[Tensor]
    is_given: bool

    @property
    def is_of_tokens(self) -> bool:
        return self.of_batches[0].ndim == 2


@dataclass
class Examples:
    """Of one kind: all targets that are asked of the same states.

    Attributes:
        states: float32 [examples, features] for the embeddings and for each layer.
        sequences: int64 [examples], the sequence that each is of.
        types: int64 [examples], the id of its token; of whole sequences a number of its own.
        labels: int64 [examples] by target, IGNORED where there is none.
        given: the targets whose labels are given.
    """

    states: list[Tensor]
    sequences: Tensor
    types: Tensor
    labels: dict[str, Tensor]
    given: set[str] = field(default_factory=set)
    is_of_tokens: bool = True


def label_all(batches: Sequence[Batch], options: ProbeOptions) -> tuple[dict[str, Labels], dict[str, str]]:
    """The labels of each target, and why some targets have none.

    Raises:
        ConfigurationError: the user's labels do not fit the batches.
    """
    names = options.chosen()
    built_in = [labels_of_tokens(batch, names, options.tokenizer) for batch in batches]
    found: dict[str, Labels | str] = {
        name: Labels([each[name] for each in built_in], is_given=False) for name in built_in[0]
    }
    found |= {name: _own_labels(batches, name, options) for name in options.labels or () if name in names}
    found |= {name: _labels_of_task(batches, name) for name in (LABEL, LABEL_AT_FIRST) if name in names}
    labels = {name: found[name] for name in names if isinstance(found[name], Labels)}
    reasons = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if options.targets is None:
        reasons = {name: reason for name, reason in reasons.items() if reason not in _NOTHING_MISSED}
    return labels, reasons


def _own_labels(batches: Sequence[Batch], name: str, options: ProbeOptions) -> Labels:
    of_batches = [options.own_labels(name, batches, index) for index in range(len(batches))]
    if len({each.ndim for each in of_batches}) > 1:
        raise ConfigurationError(f"`labels`: {name!r} is of tokens in some batches, of sequences in others.")
    return Labels(of_batches, is_given=True)


def _labels_of_task(batches: Sequence[Batch], name: str) -> Labels | str:
    """Or why there are none."""
    given = [labels_of(batch) for batch in batches]
    if any(each is None for each in given):
        return _NO_LABELS
    if any(not isinstance(each, Tensor) or each.is_floating_point() or each.is_complex() for each in given):
        return "the labels are not integers"
    shapes = [(each.shape, batch["input_ids"].shape) for each, batch in zip(given, batches, strict=True)]
    given = [each.detach().cpu().to(torch.int64) for each in given]
    if all(shape == ids[:1] for shape, ids in shapes):
        return Labels(given, is_given=True)
    if any(shape != ids for shape, ids in shapes):
        return f"the labels are neither of sequences nor of tokens: {list(shapes[0][0])}"
    if name == LABEL_AT_FIRST:
        return "the labels are of tokens, not of sequences"
    if all(map(is_language_model, batches)):
        return _LABELS_ARE_TOKENS
    return Labels(given, is_given=True)


def gather(
    batches: Sequence[Batch], labels: dict[str, Labels], options: ProbeOptions, read: Read, device: torch.device
) -> list[Examples]:
    """The examples of all targets, from one forward of each batch."""
    masks = [token_mask(batch).cpu() for batch in batches]
    of_tokens = {name: each for name, each in labels.items() if each.is_of_tokens}
    of_sequences = {name: each for name, each in labels.items() if not each.is_of_tokens}
    chosen = _choose_tokens(masks, of_tokens, options)
    tokens, means, firsts = [], [], []
    for batch, mask, rows in zip(batches, masks, chosen, strict=True):
        states = [each.detach().to(device) for each in read(batch)]
        if of_tokens:
            here = rows.to(device)
            tokens.append([each[here].float() for each in states])
        if of_sequences:
            here = mask.to(device)
            means.append([_mean(each.float(), here) for each in states])
            first = here.int().argmax(1)
            firsts.append([each[torch.arange(len(each), device=device), first].float() for each in states])
    examples = []
    if of_tokens:
        examples.append(_examples_of_tokens(tokens, batches, masks, chosen, of_tokens))
    for name, each in of_sequences.items():
        states = _joined(firsts if name == LABEL_AT_FIRST else means)
        own = torch.cat(each.of_batches)
        numbers = torch.arange(len(own))
        own = own.where(own >= 0, IGNORED)
        examples.append(Examples(states, numbers, numbers, {name: own}, {name}, is_of_tokens=False))
    return examples


def _choose_tokens(masks: list[Tensor], labels: dict[str, Labels], options: ProbeOptions) -> list[Tensor]:
    """Which tokens are examples, bool [batch, tokens] of each batch: at random, of those with a label."""
    labelled = []
    for index, mask in enumerate(masks):
        has_label = torch.zeros_like(mask)
        for each in labels.values():
            has_label |= each.of_batches[index] >= 0
        labelled.append(mask & has_label)
    places = torch.cat([each.flatten() for each in labelled]).nonzero()[:, 0]
    if len(places) > options.max_tokens:
        generator = torch.Generator().manual_seed(options.seed)
        places = places[torch.randperm(len(places), generator=generator)[: options.max_tokens]]
    chosen = torch.zeros(sum(mask.numel() for mask in masks), dtype=torch.bool)
    chosen[places] = True
    parts = chosen.split([mask.numel() for mask in masks])
    return [part.view_as(mask) for part, mask in zip(parts, masks, strict=True)]


def _examples_of_tokens(
    states: list[list[Tensor]],
    batches: Sequence[Batch],
    masks: list[Tensor],
    chosen: list[Tensor],
    labels: dict[str, Labels],
) -> Examples:
    sequences, before = [], 0
    for mask, rows in zip(masks, chosen, strict=True):
        sequences.append((torch.arange(len(mask)) + before)[:, None].expand_as(mask)[rows])
        before += len(mask)
    picked = {
        name: torch.cat([own[rows] for own, rows in zip(each.of_batches, chosen, strict=True)])
        for name, each in labels.items()
    }
    return Examples(
        _joined(states),
        torch.cat(sequences),
        torch.cat([batch["input_ids"].cpu()[rows] for batch, rows in zip(batches, chosen, strict=True)]),
        {name: own.where(own >= 0, IGNORED) for name, own in picked.items()},
        {name for name, each in labels.items() if each.is_given},
    )


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens that are not padding, [batch, features]."""
    summed = states.masked_fill(~mask[:, :, None], 0).sum(1)
    return summed / mask.sum(1, keepdim=True).clamp_min(1)


def _joined(states: list[list[Tensor]]) -> list[Tensor]:
    """Of all batches, for each layer."""
    return [torch.cat(of_layer) for of_layer in zip(*states, strict=True)]
