"""Examples for the probes: states of tokens or whole sequences, with the labels of each target."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, labels_of, token_mask
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.states import ReadStates
from attnwatch.explain.probing.targets import IGNORED, LABEL, LABEL_AT_FIRST, OwnLabels, predicts_tokens, token_labels

_NO_LABELS = "there are no labels in the batches"
_LABELS_ARE_TOKENS = "there are no labels except the tokens: the task is next_token"

Labels = list[Tensor]
"""Labels of each batch, int64 [batch, tokens] or [batch], IGNORED if there is none."""


@dataclass
class Examples:
    """Examples of the targets probed on the same states.

    Attributes:
        states: float32 [examples, features] for the embeddings and each layer.
        sequences: number of the sequence that each example comes from, int64 [examples].
        types: id of the token of each example, or a unique number for whole sequences, int64 [examples].
        labels: labels by target, int64 [examples], IGNORED if there is none.
        are_of_tokens: False for whole sequences.
    """

    states: list[Tensor]
    sequences: Tensor
    types: Tensor
    labels: dict[str, Tensor]
    are_of_tokens: bool = True


def label_batches(batches: Sequence[Batch], options: ProbeOptions) -> tuple[dict[str, Labels], dict[str, str]]:
    """Return the labels of each target, and the reasons why some targets have none.

    Raises:
        ConfigurationError: the user's labels do not fit the batches.
    """
    names = options.chosen_targets()
    built_in = [token_labels(batch, names, options.tokenizer) for batch in batches]
    found: dict[str, Labels | str] = {name: [each[name] for each in built_in] for name in built_in[0]}
    found |= {name: _own_labels(batches, name, own) for name, own in (options.labels or {}).items() if name in names}
    found |= {name: _task_labels(batches, name) for name in (LABEL, LABEL_AT_FIRST) if name in names}
    labels = {name: each for name in names if not isinstance(each := found[name], str)}
    reasons = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if options.targets is None:  # not requested by the user
        reasons = {name: why for name, why in reasons.items() if why not in (_NO_LABELS, _LABELS_ARE_TOKENS)}
    return labels, reasons


def _own_labels(batches: Sequence[Batch], name: str, own: OwnLabels) -> Labels:
    if not callable(own) and len(own) != len(batches):
        raise ConfigurationError(f"`labels`: {name!r} has {len(own)} tensors for {len(batches)} batches.")
    found = [own(batch) if callable(own) else own[index] for index, batch in enumerate(batches)]
    for labels, batch in zip(found, batches, strict=True):
        shape = batch["input_ids"].shape
        if not _are_integers(labels) or labels.shape not in (shape, shape[:1]):
            got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise ConfigurationError(
                f"`labels`: {name!r} must be integers {list(shape)} or {list(shape[:1])}, like the batch's sequences "
                f"and tokens; got {got}."
            )
    if len({labels.ndim for labels in found}) > 1:
        raise ConfigurationError(f"`labels`: {name!r} is per token in some batches and per sequence in others.")
    return list(map(_plain, found))


def _task_labels(batches: Sequence[Batch], name: str) -> Labels | str:
    """Return the labels in the batches, or the reason why they can't be used."""
    given = [labels_of(batch) for batch in batches]
    if any(each is None for each in given):
        return _NO_LABELS
    if not all(map(_are_integers, given)):
        return "the labels are not integers"
    shapes = [(each.shape, batch["input_ids"].shape) for each, batch in zip(given, batches, strict=True)]
    if all(shape == ids[:1] for shape, ids in shapes):
        return list(map(_plain, given))
    if any(shape != ids for shape, ids in shapes):
        return f"the labels are neither per sequence nor per token: {list(shapes[0][0])}"
    if name == LABEL_AT_FIRST:
        return "the labels are per token, not per sequence"
    return _LABELS_ARE_TOKENS if all(map(predicts_tokens, batches)) else list(map(_plain, given))


def _are_integers(labels: object) -> bool:
    return isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()


def _plain(labels: Tensor) -> Tensor:
    return labels.detach().cpu().to(torch.int64).clamp_min(IGNORED)


def gather_examples(
    batches: Sequence[Batch], labels: dict[str, Labels], options: ProbeOptions, read: ReadStates, device: torch.device
) -> list[Examples]:
    """Return the examples of all targets, from one forward per batch."""
    masks = [token_mask(batch).cpu() for batch in batches]
    of_tokens = {name: each for name, each in labels.items() if each[0].ndim == 2}
    of_sequences = {name: torch.cat(each) for name, each in labels.items() if name not in of_tokens}
    chosen = _choose_tokens(masks, of_tokens, options) if of_tokens else masks
    pools = {name: _first if name == LABEL_AT_FIRST else _mean for name in of_sequences}
    pools |= dict.fromkeys(of_tokens, _chosen)
    pooled: dict[Callable[[Tensor, Tensor, Tensor], Tensor], list[list[Tensor]]] = {pool: [] for pool in pools.values()}
    for batch, mask, rows in zip(batches, masks, chosen, strict=True):
        states = [each.detach().to(device) for each in read(batch)]
        for pool, found in pooled.items():
            found.append([pool(each, mask.to(device), rows.to(device)) for each in states])
    states_of = {pool: [torch.cat(layer) for layer in zip(*found, strict=True)] for pool, found in pooled.items()}
    examples = []
    if of_tokens:

        def pick(by_batch: Sequence[Tensor]) -> Tensor:
            return torch.cat([each[rows] for each, rows in zip(by_batch, chosen, strict=True)])

        numbers = torch.arange(sum(map(len, masks))).split(list(map(len, masks)))
        sequences = pick([each[:, None].expand_as(mask) for each, mask in zip(numbers, masks, strict=True)])
        types = pick([batch["input_ids"].cpu() for batch in batches])
        examples = [Examples(states_of[_chosen], sequences, types, {name: pick(of_tokens[name]) for name in of_tokens})]
    for name, own in of_sequences.items():
        numbers = torch.arange(len(own))
        examples.append(Examples(states_of[pools[name]], numbers, numbers, {name: own}, are_of_tokens=False))
    return examples


def _choose_tokens(masks: list[Tensor], labels: dict[str, Labels], options: ProbeOptions) -> list[Tensor]:
    """Return a mask of randomly chosen tokens with a label, bool [batch, tokens] for each batch."""
    by_batch = [torch.stack(each).ge(0).any(0) for each in zip(*labels.values(), strict=True)]
    has_label = torch.cat([(mask & each).flatten() for mask, each in zip(masks, by_batch, strict=True)])
    places = has_label.nonzero()[:, 0]
    if len(places) > options.max_tokens:
        generator = torch.Generator().manual_seed(options.seed)
        places = places[torch.randperm(len(places), generator=generator)[: options.max_tokens]]
    chosen = torch.zeros_like(has_label).index_fill(0, places, True)
    parts = chosen.split([mask.numel() for mask in masks])
    return [part.view_as(mask) for part, mask in zip(parts, masks, strict=True)]


def _chosen(states: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
    return states[chosen].float()


def _first(states: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
    return states[torch.arange(len(mask), device=mask.device), mask.int().argmax(1)].float()


def _mean(states: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean over the tokens that are not padding, [batch, features]."""
    summed = states.float().masked_fill(~mask[:, :, None], 0).sum(1)
    return summed / mask.sum(1, keepdim=True).clamp_min(1)
