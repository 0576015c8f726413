"""Kinds of findings, which follow from the registered rules and checks."""

import functools
from collections.abc import Iterator, Mapping
from enum import Enum, EnumMeta
from types import MappingProxyType
from typing import Any

from attnwatch.diagnosis.findings.base import FindingRule
from attnwatch.diagnosis.status import RunStatus
from attnwatch.plugins import Registry


def _declared() -> Mapping[str, Any]:
    """Return the registered rules and checks by name, those of attnwatch first."""
    from attnwatch.checkup.checks.base import Check

    registries: tuple[Registry[Any], ...] = (FindingRule.registry, Check.registry)
    found = [(name, each, registry.is_built_in(each)) for registry in registries for name, each in registry.items()]
    declared: dict[str, Any] = {}
    for name, each, _ in sorted(found, key=lambda entry: not entry[2]):
        declared.setdefault(name, each)
    return declared


def _names() -> tuple[str, ...]:
    return tuple(_declared())


def status_of(kind: str) -> RunStatus | None:
    """Return the status of a run that has findings of this kind; None if they are always notes."""
    status: RunStatus | None = _declared()[kind].status
    return status


class _RegisteredKinds(EnumMeta):
    """Metaclass that takes the members of an enum from the registered rules and checks, in their order."""

    @property
    def __members__(cls) -> "Mapping[str, FindingKind]":  # type: ignore[override]
        return MappingProxyType({name.upper(): _kind(name) for name in _names()})

    def __call__(cls, value: str) -> "FindingKind":  # type: ignore[override]
        if isinstance(value, cls):
            return value
        if value not in cls:
            raise ValueError(f"{value!r} is not a kind of finding; there are: {', '.join(_names())}.")
        return _kind(str(value))

    def __getattr__(cls, name: str) -> "FindingKind":
        if name.isupper() and name.lower() in _names():
            return _kind(name.lower())
        raise AttributeError(f"{cls.__name__} has no member {name!r}")

    def __getitem__(cls, name: str) -> Any:
        return cls.__members__[name]

    def __contains__(cls, value: object) -> bool:
        return isinstance(value, str) and value in _names()

    def __iter__(cls) -> Iterator[Any]:
        return iter(cls.__members__.values())

    def __len__(cls) -> int:
        return len(_names())


class FindingKind(str, Enum, metaclass=_RegisteredKinds):
    """Kind of a finding. It has a member for each registered `FindingRule` and `Check`, those of users included.

    Example:
        >>> FindingKind("uniform_attention") is FindingKind.UNIFORM_ATTENTION
        True
        >>> [kind.value for kind in FindingKind][:2]
        ['blind_attention', 'entropy_collapse']
    """

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _kind, (self.value,)


@functools.cache
def _kind(name: str) -> FindingKind:
    """Return the one member of this name, also if its rule is not registered where a finding is unpickled."""
    kind = str.__new__(FindingKind, name)
    kind._name_, kind._value_ = name.upper(), name
    return kind
