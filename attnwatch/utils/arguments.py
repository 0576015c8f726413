"""Checks of user arguments. Each raises a `ConfigurationError` that names the argument and what it was given."""

from collections.abc import Collection
from numbers import Integral, Real

from attnwatch.errors import ConfigurationError


def require_int(name: str, value: object, *, minimum: int, maximum: int | None = None, optional: bool = False) -> None:
    """Check that `value` is an integer from `minimum` to `maximum`, or None if `optional`."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        alternative = " or None" if optional else ""
        raise ConfigurationError(f"`{name}` must be an integer of at least {minimum}{alternative}, got {value!r}.")
    if maximum is not None and value > maximum:
        raise ConfigurationError(f"`{name}` must be at most {maximum}, got a number of {len(f'{value:x}')} hex digits.")


def require_number(name: str, value: object, what: str, *, minimum: float, maximum: float) -> None:
    """Check that `value` is a number from `minimum` to `maximum`; `what` says what kind of number it is."""
    if isinstance(value, bool) or not isinstance(value, Real) or not minimum <= value <= maximum:
        raise ConfigurationError(f"`{name}` must be {what}, between {minimum} and {maximum}, got {value!r}.")


def require_instance(name: str, value: object, kind: type) -> None:
    """Check that `value` is an instance of `kind`, or None."""
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"`{name}` must be {kind.__name__} or None, got {value!r}.")


def require_one_of(name: str, value: object, known: Collection[str], *, optional: bool = False) -> None:
    """Raise a `ConfigurationError` unless `value` is one of the known words (or None, if `optional`)."""
    if optional and value is None:
        return
    if not isinstance(value, str) or value not in known:
        alternative = " or None" if optional else ""
        raise ConfigurationError(f"`{name}` must be one of {', '.join(map(repr, known))}{alternative}, got {value!r}.")
