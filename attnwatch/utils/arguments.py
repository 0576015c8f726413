"""Checks of user arguments, shared by everything that takes some."""

from collections.abc import Collection
from numbers import Integral

from attnwatch.errors import ConfigurationError


def require_int(name: str, value: object, *, minimum: int, maximum: int | None = None, optional: bool = False) -> None:
    """Raise a `ConfigurationError` unless `value` is an integer in this range (or None, if `optional`)."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        alternative = " or None" if optional else ""
        raise ConfigurationError(f"`{name}` must be an integer of at least {minimum}{alternative}, got {value!r}.")
    if maximum is not None and value > maximum:
        raise ConfigurationError(f"`{name}` must be at most {maximum}, got a number of {len(f'{value:x}')} hex digits.")


def require_one_of(name: str, value: object, known: Collection[str], *, optional: bool = False) -> None:
    """Raise a `ConfigurationError` unless `value` is one of the known words (or None, if `optional`)."""
    if optional and value is None:
        return
    if not isinstance(value, str) or value not in known:
        alternative = " or None" if optional else ""
        raise ConfigurationError(f"`{name}` must be one of {', '.join(map(repr, known))}{alternative}, got {value!r}.")
