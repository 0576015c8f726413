"""Ways to hide tokens from a model."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.subject import Batch, Subject

HIDES = ("remove", "mask_token", "mean")

# Of a configuration, where no tokenizer says which ids are special.
_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
_ROWS_AT_ONCE = 4096


class Hiding:
    """A way to hide tokens. Rows are sequences in which some tokens are hidden."""

    takes_away_outputs = False
    """Whether what the model says at a hidden token has no meaning."""

    @contextlib.contextmanager
    def hidden_in(self, rows: dict[str, Any], hidden: Tensor, start: int) -> Iterator[dict[str, Any]]:
        """While it is open, what it yields hides the tokens `hidden`, bool [rows, tokens], of the rows.

        The model is then given the tokens from `start` on.
        """
        raise NotImplementedError
        yield


class Removal(Hiding):
    """No other token sees it: its key is masked out in every layer."""

    takes_away_outputs = True

    @contextlib.contextmanager
    def hidden_in(self, rows: dict[str, Any], hidden: Tensor, start: int) -> Iterator[dict[str, Any]]:
        mask = rows["attention_mask"]
        yield {**rows, "attention_mask": mask * ~hidden}


class MaskToken(Hiding):
    """Another token stands in its place."""

    def __init__(self, token_id: int):
        self._token_id = token_id

    @contextlib.contextmanager
    def hidden_in(self, rows: dict[str, Any], hidden: Tensor, start: int) -> Iterator[dict[str, Any]]:
        yield {**rows, "input_ids": rows["input_ids"].masked_fill(hidden, self._token_id)}


class MeanEmbedding(Hiding):
    """The mean of all rows of the embedding matrix stands in the place of its embedding."""

    def __init__(self, embedding: nn.Module):
        self._embedding = embedding
        total: Tensor | float = 0.0
        ids = torch.arange(embedding.weight.shape[0], device=embedding.weight.device)
        for some in ids.split(_ROWS_AT_ONCE):
            total = total + embedding(some).sum(0)
        self._mean = total / len(ids)

    @contextlib.contextmanager
    def hidden_in(self, rows: dict[str, Any], hidden: Tensor, start: int) -> Iterator[dict[str, Any]]:
        def replace(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            here = hidden[:, start : start + output.shape[1], None]
            return torch.where(here, self._mean.to(output.dtype), output)

        handle = self._embedding.register_forward_hook(replace)
        try:
            yield rows
        finally:
            handle.remove()


def make_hiding(hide: str, subject: Subject, tokenizer: Any, mask_token_id: int | None) -> Hiding:
    """From its name.

    Raises:
        ConfigurationError: it is unknown, or the model can't be asked this way.
    """
    if hide == "remove":
        _refuse_removal(subject)
        return Removal()
    if hide == "mask_token":
        token_id = getattr(tokenizer, "mask_token_id", None) if mask_token_id is None else mask_token_id
        if token_id is None:
            raise ConfigurationError(
                f"`hide` 'mask_token' needs a mask token, and none is known of {type(subject.model).__name__}: give "
                "`mask_token_id`, or a `tokenizer` that has one; or hide by 'remove' or 'mean'."
            )
        _check_known(int(token_id), subject)
        return MaskToken(int(token_id))
    if hide == "mean":
        return MeanEmbedding(embedding_of(subject, "`hide` 'mean'"))
    raise ConfigurationError(f"`hide` must be one of {', '.join(map(repr, HIDES))}, got {hide!r}.")


def embedding_of(subject: Subject, who: str) -> nn.Module:
    """The module that embeds input ids.

    Raises:
        ConfigurationError: it is not known.
    """
    find = getattr(subject.model, "get_input_embeddings", None)
    embedding = find() if callable(find) else None
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise ConfigurationError(
            f"{who} needs the module that embeds `input_ids`: {type(subject.model).__name__} must have it as "
            "`get_input_embeddings()`."
        )
    return embedding


def ids_never_hidden(subject: Subject, tokenizer: Any, given: Collection[int] | None) -> Tensor:
    """Vocabulary ids that are never hidden, int64 [ids]: special tokens, without the one for unknown words.

    Args:
        tokenizer: that says it; None means that the model's configuration does, which knows some only.
        given: the ids, where the user gave them.
    """
    if given is not None:
        ids = {int(each) for each in given}
    elif tokenizer is not None:
        names = {name: getattr(tokenizer, name, None) for name in _SPECIAL_IDS}
        ids = set(tokenizer.all_special_ids)
        if tokenizer.unk_token_id not in names.values():
            ids.discard(tokenizer.unk_token_id)
    else:
        config = getattr(subject.model, "config", None)
        values = [getattr(config, name, None) for name in _SPECIAL_IDS]
        ids = {each for value in values for each in (value if isinstance(value, list) else [value])}
        ids = {each for each in ids if isinstance(each, int)}
    return torch.tensor(sorted(ids), dtype=torch.int64, device=subject.device)


def positions_by_mask(mask: Tensor) -> Tensor:
    """int64 [batch, tokens]: real tokens are counted from 0, as models do that derive positions from the mask.

    0 at padding, where it does not matter: -1 is no index, and an accelerator does not recover from one.
    """
    return mask.long().cumsum(1).mul(mask.long()).sub(1).clamp(min=0)


def rows_of(batch: Batch, sequences: Tensor) -> dict[str, Any]:
    """These sequences of a batch, int64 [rows]; what has no batch dimension stays."""
    size = len(batch["input_ids"])
    has_batch = {name: isinstance(each, Tensor) and each.ndim > 0 and len(each) == size for name, each in batch.items()}
    return {name: each[sequences] if has_batch[name] else each for name, each in batch.items()}


def _check_known(token_id: int, subject: Subject) -> None:
    """An accelerator does not recover from an id that is not in the embedding."""
    find = getattr(subject.model, "get_input_embeddings", None)
    weight = getattr(find() if callable(find) else None, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and not 0 <= token_id < len(weight):
        raise ConfigurationError(
            f"`mask_token_id` must be one of the {len(weight)} ids that {type(subject.model).__name__} embeds, from 0 "
            f"to {len(weight) - 1}; got {token_id}: give another, or the `tokenizer` of this model."
        )


def _refuse_removal(subject: Subject) -> None:
    name = type(subject.model).__name__
    if not subject.takes("attention_mask"):
        raise ConfigurationError(
            f"`hide` 'remove' masks keys, and {name} takes no `attention_mask`: hide by 'mask_token' or 'mean'."
        )
    config = getattr(subject.model, "config", None)
    if getattr(config, "model_type", None) == "bloom" or getattr(config, "alibi", False) is True:
        raise ConfigurationError(
            f"`hide` 'remove' would shift the other tokens of {name}, which counts distances in the attention mask: "
            "hide by 'mean'."
        )
