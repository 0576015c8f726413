"""Examples for the probes: states of tokens or of whole sequences, with the labels of each target."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, labels_of, token_mask
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.states import ReadStates
from attnwatch.explain.probing.targets import IGNORED, LABEL, LABEL_AT_FIRST, predicts_tokens, token_labels

_NO_LABELS = "there are no labels in the batches"
_LABELS_ARE_TOKENS = "there are no labels but the tokens: the task is next_token"


@dataclass(frozen=True)
class Labels:
    """Labels of one target.

    Attributes:
        by_batch: int64 [batch, tokens], or [batch] for labels of sequences; negative ones are ignored.
        is_given: they come from the user or the task, so that no class may be left out.
    """

    by_batch: list[Tensor]
    is_given: bool

    @property
    def are_of_tokens(self) -> bool:
        return self.by_batch[0].ndim == 2


@dataclass
class Examples:
    """Examples of the targets that are probed on the same states.

    Attributes:
        states: float32 [examples, features] for the embeddings and for each layer.
        sequences: int64 [examples], number of the sequence that each example comes from.
        types: int64 [examples], id of its token; for whole sequences a number of its own.
        labels: int64 [examples] by target, IGNORED where there is none.
        given: targets whose labels come from the user or the task.
        are_of_tokens: False for whole sequences.
    """

    states: list[Tensor]
    sequences: Tensor
    types: Tensor
    labels: dict[str, Tensor]
    given: set[str] = field(default_factory=set)
    are_of_tokens: bool = True


def label_batches(batches: Sequence[Batch], options: ProbeOptions) -> tuple[dict[str, Labels], dict[str, str]]:
    """Return the labels of each target, and why some targets have none.

    Raises:
        ConfigurationError: the user's labels do not fit the batches.
    """
    names = options.chosen_targets()
    built_in = [token_labels(batch, names, options.tokenizer) for batch in batches]
    found: dict[str, Labels | str] = {
        name: Labels([each[name] for each in built_in], is_given=False) for name in built_in[0]
    }
    found |= {name: _own_labels(batches, name, options) for name in options.labels or () if name in names}
    found |= {name: _task_labels(batches, name) for name in (LABEL, LABEL_AT_FIRST) if name in names}
    labels = {name: found[name] for name in names if isinstance(found[name], Labels)}
    reasons = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if options.targets is None:  # the user did not ask for them
        reasons = {name: why for name, why in reasons.items() if why not in (_NO_LABELS, _LABELS_ARE_TOKENS)}
    return labels, reasons


def _own_labels(batches: Sequence[Batch], name: str, options: ProbeOptions) -> Labels:
    own = options.labels[name]
    if not callable(own) and len(own) != len(batches):
        raise ConfigurationError(f"`labels`: {name!r} has {len(own)} tensors for {len(batches)} batches.")
    found = [own(batch) if callable(own) else own[index] for index, batch in enumerate(batches)]
    for labels, batch in zip(found, batches, strict=True):
        shape = batch["input_ids"].shape
        is_int = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
        if not is_int or labels.shape not in (shape, shape[:1]):
            got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise ConfigurationError(
                f"`labels`: for {name!r} integers {list(shape)} or {list(shape[:1])} expected, as the batch has "
                f"sequences and tokens; got {got}."
            )
    if len({labels.ndim for labels in found}) > 1:
        raise ConfigurationError(f"`labels`: {name!r} is of tokens in some batches, of sequences in others.")
    return Labels([labels.detach().cpu().to(torch.int64) for labels in found], is_given=True)


def _task_labels(batches: Sequence[Batch], name: str) -> Labels | str:
    """Return the labels in the batches, or why they can't be used."""
    given = [labels_of(batch) for batch in batches]
    if any(each is None for each in given):
        return _NO_LABELS
    if any(not isinstance(each, Tensor) or each.is_floating_point() or each.is_complex() for each in given):
        return "the labels are not integers"
    shapes = [(each.shape, batch["input_ids"].shape) for each, batch in zip(given, batches, strict=True)]
    labels = Labels([each.detach().cpu().to(torch.int64) for each in given], is_given=True)
    if all(shape == ids[:1] for shape, ids in shapes):
        return labels
    if any(shape != ids for shape, ids in shapes):
        return f"the labels are neither of sequences nor of tokens: {list(shapes[0][0])}"
    if name == LABEL_AT_FIRST:
        return "the labels are of tokens, not of sequences"
    return _LABELS_ARE_TOKENS if all(map(predicts_tokens, batches)) else labels


def gather_examples(
    batches: Sequence[Batch], labels: dict[str, Labels], options: ProbeOptions, read: ReadStates, device: torch.device
) -> list[Examples]:
    """Return the examples of all targets, from one forward of each batch."""
    masks = [token_mask(batch).cpu() for batch in batches]
    of_tokens = {name: each for name, each in labels.items() if each.are_of_tokens}
    of_sequences = {name: each for name, each in labels.items() if not each.are_of_tokens}
    chosen = _choose_tokens(masks, of_tokens, options)
    tokens, means, firsts = [], [], []
    for batch, mask, rows in zip(batches, masks, chosen, strict=True):
        states = [each.detach().to(device) for each in read(batch)]
        here, mask = rows.to(device), mask.to(device)
        if of_tokens:
            tokens.append([each[here].float() for each in states])
        if of_sequences:
            means.append([_mean(each.float(), mask) for each in states])
            sequences, first = torch.arange(len(mask), device=device), mask.int().argmax(1)
            firsts.append([each[sequences, first].float() for each in states])
    examples = [_token_examples(tokens, batches, masks, chosen, of_tokens)] if of_tokens else []
    for name, each in of_sequences.items():
        own = torch.cat(each.by_batch)
        states = _join_batches(firsts if name == LABEL_AT_FIRST else means)
        numbers = torch.arange(len(own))
        own = own.where(own >= 0, IGNORED)
        examples.append(Examples(states, numbers, numbers, {name: own}, {name}, are_of_tokens=False))
    return examples


def _choose_tokens(masks: list[Tensor], labels: dict[str, Labels], options: ProbeOptions) -> list[Tensor]:
    """Return a random choice of the tokens with a label, bool [batch, tokens] of each batch."""
    has_label = [
        mask & reduce(torch.logical_or, (each.by_batch[index] >= 0 for each in labels.values()), torch.zeros_like(mask))
        for index, mask in enumerate(masks)
    ]
    places = torch.cat([each.flatten() for each in has_label]).nonzero()[:, 0]
    if len(places) > options.max_tokens:
        generator = torch.Generator().manual_seed(options.seed)
        places = places[torch.randperm(len(places), generator=generator)[: options.max_tokens]]
    chosen = torch.zeros(sum(mask.numel() for mask in masks), dtype=torch.bool)
    chosen[places] = True
    parts = chosen.split([mask.numel() for mask in masks])
    return [part.view_as(mask) for part, mask in zip(parts, masks, strict=True)]


def _token_examples(
    states: list[list[Tensor]],
    batches: Sequence[Batch],
    masks: list[Tensor],
    chosen: list[Tensor],
    labels: dict[str, Labels],
) -> Examples:
    def pick(by_batch: Sequence[Tensor]) -> Tensor:
        return torch.cat([each[rows] for each, rows in zip(by_batch, chosen, strict=True)])

    numbers = torch.arange(sum(map(len, masks))).split(list(map(len, masks)))
    sequences = [each[:, None].expand_as(mask) for each, mask in zip(numbers, masks, strict=True)]
    picked = {name: pick(each.by_batch) for name, each in labels.items()}
    return Examples(
        _join_batches(states),
        pick(sequences),
        pick([batch["input_ids"].cpu() for batch in batches]),
        {name: own.where(own >= 0, IGNORED) for name, own in picked.items()},
        {name for name, each in labels.items() if each.is_given},
    )


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens that are not padding, [batch, features]."""
    summed = states.masked_fill(~mask[:, :, None], 0).sum(1)
    return summed / mask.sum(1, keepdim=True).clamp_min(1)


def _join_batches(states: list[list[Tensor]]) -> list[Tensor]:
    """Return the states of all batches, for each layer."""
    return [torch.cat(of_layer) for of_layer in zip(*states, strict=True)]
