"""Checks of user arguments. Each raises a `ConfigurationError` that names the argument and the given value."""

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any, get_args

from torch import nn
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError


def require_int(name: str, value: object, *, minimum: int, maximum: int | None = None, optional: bool = False) -> None:
    """Check that `value` is an integer from `minimum` to `maximum`, or None if `optional`."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        alternative = " or None" if optional else ""
        raise ConfigurationError(f"`{name}` must be an integer of at least {minimum}{alternative}, got {value!r}.")
    if maximum is not None and int(value) > maximum:
        raise ConfigurationError(f"`{name}` must be at most {maximum}, got a number of {len(f'{value:x}')} hex digits.")


def require_instance(name: str, value: object, kind: type) -> None:
    """Check that `value` is an instance of `kind`, or None."""
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"`{name}` must be {kind.__name__} or None, got {value!r}.")


def require_between(
    name: str, value: object, minimum: float, maximum: float, *, inclusive: bool = True, kind: str = "a number"
) -> None:
    """Check that `value` is a real number between two limits.

    Args:
        inclusive: True if the limits themselves are allowed.
        kind: description of the number, for the message.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (minimum <= number <= maximum if inclusive else minimum < number < maximum):
        raise ConfigurationError(f"`{name}` must be {kind} between {minimum:g} and {maximum:g}, got {value!r}.")


def require_choice(name: str, value: object, choices: Any, *, optional: bool = False) -> None:
    """Check that `value` is one of some words, or None if `optional`.

    Args:
        choices: a `Literal[...]` or a collection of words.

    Example:
        >>> from typing import Literal
        >>> require_choice("score", "max", Literal["sum", "mean"])
        Traceback (most recent call last):
        ...
        attnwatch.errors.ConfigurationError: `score` must be one of 'sum', 'mean', got 'max'.
    """
    if optional and value is None:
        return
    words: Collection[object] = get_args(choices) or choices
    if not isinstance(value, str) or value not in words:
        alternative = " or None" if optional else ""
        raise ConfigurationError(f"`{name}` must be one of {', '.join(map(repr, words))}{alternative}, got {value!r}.")


def require_module(name: str, value: object) -> None:
    """Check that `value` is a `torch.nn.Module`."""
    if not isinstance(value, nn.Module):
        raise ConfigurationError(f"`{name}` must be a torch.nn.Module, got {type(value).__name__}.")


def as_optimizers(name: str, value: object) -> tuple[Optimizer, ...]:
    """Return one or several optimizers as a tuple, after checking that they are torch optimizers."""
    given = (value,) if isinstance(value, Optimizer) else value
    if not isinstance(given, Sequence) or not all(isinstance(each, Optimizer) for each in given):
        raise ConfigurationError(f"`{name}` must be a torch.optim.Optimizer or a list of them, got {value!r}.")
    return tuple(given)


def require_function(name: str, value: object, arguments: str, *, optional: bool = False) -> None:
    """Check that `value` is callable, or None if `optional`.

    Args:
        arguments: arguments that it is called with, such as "(model, batch)".
    """
    if not callable(value) and not (optional and value is None):
        raise ConfigurationError(f"`{name}` must be a function of {arguments}, got {value!r}.")


def require_text(name: str, value: object, *, expected: str = "a text") -> None:
    """Check that `value` is nonblank text that UTF-8 can encode."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"`{name}` must be {expected}, got {value!r}.")
    require_unicode(name, value)


def require_unicode(name: str, text: str) -> None:
    """Check that a text has no lone surrogates, which JSON may contain but no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"`{name}` must be text that UTF-8 can encode, but has the lone surrogate {text[error.start]!r} at "
            f"{error.start}: {text[max(0, error.start - 20) : error.start + 20]!r}; remove it."
        ) from error
