"""Checks of what a user asks for: of the options of hiding, of the batch, and of tokenizers."""

import operator
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.effects import EFFECTS
from attnwatch.explain.hiding import HIDES
from attnwatch.explain.subject import Batch, Subject, labels_of, token_mask
from attnwatch.utils.arguments import require_int


def check_hiding_options(
    *,
    hide: str = "remove",
    effect: str | None = None,
    tokenizer: Any = None,
    mask_token_id: int | None = None,
    special_ids: Collection[int] | None = None,
    tokens_per_forward: int | None = None,
) -> None:
    """Of `occlude`, as far as they can be judged without a model; raises a `ConfigurationError` that names one."""
    require_one_of("hide", hide, HIDES)
    require_one_of("effect", effect, EFFECTS, optional=True)
    require_tokenizer(tokenizer)
    require_int("mask_token_id", mask_token_id, minimum=0, optional=True)
    require_int("tokens_per_forward", tokens_per_forward, minimum=1, optional=True)
    if special_ids is not None and not _are_integers(special_ids):
        raise ConfigurationError(
            f"`special_ids` must be a list of token ids, integers, or None (those that the tokenizer or the model's "
            f"configuration knows); got {special_ids!r}."
        )


def check_model(subject: Subject, effect: str | None) -> None:
    """Raises a `ConfigurationError` if a model is known to say something else than the effect is measured by."""
    if subject.has_own_forward:
        return
    config = getattr(subject.model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and "Classification" not in subject.head:
        raise ConfigurationError(
            f"`model`: {subject.head} is an encoder-decoder, whose outputs belong to the decoder's tokens and not to "
            "`input_ids`: give `forward`, a function of (model, batch) that returns logits [batch, classes], for "
            "instance those of the decoder's last token."
        )
    refuse_other_heads(subject, effect)


def refuse_other_heads(subject: Subject, effect: str | None) -> None:
    """Raises a `ConfigurationError` if what the model says at a token is by its own word not about the next one."""
    if effect not in (None, "loss"):
        return
    for kind, about in (("MaskedLM", "the hidden tokens"), ("TokenClassification", "the token itself")):
        if subject.head.endswith(kind) or subject.loss_type == f"For{kind}":
            raise ConfigurationError(
                f"`effect` 'loss' is of the next token, and the outputs of {subject.head} are about {about}: give "
                "effect='kl'."
            )


def check_batch(batch: Batch) -> None:
    """Raises a `ConfigurationError` unless there is something to hide, and labels, if there are any, are a tensor."""
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            f"`batch` must be a mapping with `input_ids`, as the model takes them by name; got a "
            f"{type(batch).__name__}."
        )
    real = token_mask(batch)
    if real.numel() == 0:
        raise ConfigurationError(
            f"`batch` is empty, `input_ids` are of shape {list(real.shape)}: give at least one sequence of one token."
        )
    labels = labels_of(batch)
    if labels is not None and not isinstance(labels, Tensor):
        raise ConfigurationError(
            f"`batch`: `labels` must be a tensor, got a {type(labels).__name__}: give torch.tensor(labels)."
        )


def require_one_of(name: str, value: object, known: Collection[str], *, optional: bool = False) -> None:
    """Raises a `ConfigurationError` unless it is a known name (or None, if `optional`)."""
    if optional and value is None:
        return
    if not isinstance(value, str) or value not in known:
        alternative = " or None" if optional else ""
        raise ConfigurationError(f"`{name}` must be one of {', '.join(map(repr, known))}{alternative}, got {value!r}.")


def require_tokenizer(tokenizer: object, *, optional: bool = True) -> None:
    """Raises a `ConfigurationError` unless it is one of transformers (or None, if `optional`); a name is none."""
    if (optional and tokenizer is None) or hasattr(tokenizer, "all_special_ids"):
        return
    got = f"the text {tokenizer!r}" if isinstance(tokenizer, str) else f"a {type(tokenizer).__name__}"
    name = repr(tokenizer) if isinstance(tokenizer, str) else "name"
    raise ConfigurationError(
        f"`tokenizer` must be a tokenizer of transformers, got {got}: give a tokenizer object, "
        f"AutoTokenizer.from_pretrained({name})."
    )


def _are_integers(given: object) -> bool:
    try:
        return isinstance(given, Collection) and all(operator.index(each) is not None for each in given)
    except TypeError:
        return False
