"""Methods to hide tokens from a model."""

import functools
import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.effects import EffectName
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.token_text import require_tokenizer
from attnwatch.utils.arguments import require_choice, require_int

HidingName = Literal["remove", "mask_token", "mean"]

Hide = Callable[[dict[str, Any], Tensor, int], AbstractContextManager[dict[str, Any]]]
"""Function of the rows, the hidden tokens (bool [rows, tokens]) and the first token that the model receives, which
returns a context that yields the rows to pass to the model."""

# Special tokens in a model's config, used without a tokenizer.
_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
_EMBEDDINGS_AT_ONCE = 4096


@dataclass(frozen=True)
class HidingOptions:
    """Arguments of `occlude` that define how tokens are hidden and what is measured.

    Args:
        hide, effect, tokenizer, mask_token_id, special_ids, tokens_per_forward: see `attnwatch.explain.occlude`.

    Raises:
        ConfigurationError: one of them is invalid.
    """

    hide: HidingName = "remove"
    effect: EffectName | None = None
    tokenizer: Any = None
    mask_token_id: int | None = None
    special_ids: Collection[int] | None = None
    tokens_per_forward: int | None = None

    def __post_init__(self) -> None:
        require_choice("hide", self.hide, HidingName)
        require_choice("effect", self.effect, EffectName, optional=True)
        require_tokenizer(self.tokenizer, optional=True)
        require_int("mask_token_id", self.mask_token_id, minimum=0, optional=True)
        require_int("tokens_per_forward", self.tokens_per_forward, minimum=1, optional=True)
        if self.special_ids is None:
            return
        try:
            object.__setattr__(self, "special_ids", tuple(map(operator.index, self.special_ids)))
        except TypeError as error:
            raise ConfigurationError(
                "`special_ids` must be a list of token ids, integers, or None (those of the tokenizer or the model's "
                f"configuration); got {self.special_ids!r}."
            ) from error


def make_hiding(options: HidingOptions, model: EvaluatedModel) -> Hide:
    """Return the hiding method named in the options.

    Raises:
        ConfigurationError: tokens of this model can't be hidden this way.
    """
    if options.hide == "remove":
        _refuse_removal(model)
        return _remove
    if options.hide == "mean":
        return _mean_embedding(model.require_input_embeddings("`hide` 'mean'"))
    token_id = options.mask_token_id
    if token_id is None:
        token_id = getattr(options.tokenizer, "mask_token_id", None)
    if token_id is None:
        raise ConfigurationError(
            f"`hide` 'mask_token' needs a mask token, but {model.name} has none: pass `mask_token_id`, or a "
            "`tokenizer` that has one; or hide with 'remove' or 'mean'."
        )
    _check_embedded(int(token_id), model)
    return functools.partial(_replace, int(token_id))


def _remove(rows: dict[str, Any], hidden: Tensor, start: int) -> AbstractContextManager[dict[str, Any]]:
    """Mask the token's key in every layer, so that no other token sees it."""
    return nullcontext({**rows, "attention_mask": rows["attention_mask"] * ~hidden})


def _replace(token_id: int, rows: dict[str, Any], hidden: Tensor, start: int) -> AbstractContextManager[dict[str, Any]]:
    """Replace the hidden tokens by another token."""
    return nullcontext({**rows, "input_ids": rows["input_ids"].masked_fill(hidden, token_id)})


def _mean_embedding(embeddings: nn.Module) -> Hide:
    """Return a method that replaces the token's embedding by the mean of all embeddings."""
    weight = cast(Tensor, embeddings.weight)
    ids = torch.arange(weight.shape[0], device=weight.device)
    mean = torch.stack([embeddings(some).sum(0) for some in ids.split(_EMBEDDINGS_AT_ONCE)]).sum(0) / len(ids)

    @contextmanager
    def hide(rows: dict[str, Any], hidden: Tensor, start: int) -> Iterator[dict[str, Any]]:
        def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            here = hidden[:, start : start + output.shape[1], None]
            return torch.where(here, mean.to(output.dtype), output)

        handle = embeddings.register_forward_hook(replace)
        try:
            yield rows
        finally:
            handle.remove()

    return hide


def special_token_ids(model: EvaluatedModel, options: HidingOptions) -> Tensor:
    """Return the ids of special tokens, which are never hidden, int64 [ids].

    They are the user's, or the tokenizer's except for unknown words, or those in the model's config.
    """
    if options.special_ids is not None:
        ids = set(options.special_ids)
    elif options.tokenizer is not None:
        ids = set(options.tokenizer.all_special_ids)
        if options.tokenizer.unk_token_id not in (getattr(options.tokenizer, name, None) for name in _SPECIAL_IDS):
            ids.discard(options.tokenizer.unk_token_id)
    else:
        values = [getattr(model.config, name, None) for name in _SPECIAL_IDS]
        flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
        ids = {each for each in flat if isinstance(each, int)}
    return torch.tensor(sorted(ids), dtype=torch.int64, device=model.device)


def _check_embedded(token_id: int, model: EvaluatedModel) -> None:
    """Raise a `ConfigurationError` for an id without an embedding, which would crash an accelerator."""
    weight = getattr(model.input_embeddings, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and not 0 <= token_id < len(weight):
        raise ConfigurationError(
            f"`mask_token_id` must be one of the {len(weight)} ids that {model.name} embeds, from 0 to "
            f"{len(weight) - 1}; got {token_id}: pass another id, or the `tokenizer` of this model."
        )


def _refuse_removal(model: EvaluatedModel) -> None:
    if not model.accepts("attention_mask"):
        raise ConfigurationError(
            f"`hide` 'remove' masks keys, but {model.name} takes no `attention_mask`: hide with 'mask_token' or 'mean'."
        )
    if getattr(model.config, "model_type", None) == "bloom" or getattr(model.config, "alibi", False) is True:
        raise ConfigurationError(
            f"`hide` 'remove' would shift the other tokens of {model.name}, which counts distances in the attention "
            "mask: hide with 'mean'."
        )
