"""Base class of the causes of findings, and what a cause declares."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.signs import SIGNS, signs_of
from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry, register

__all__ = ["CauseRule", "Clue", "RunCourse", "register", "signs"]


def signs(**weights: float) -> Mapping[str, float]:
    """Return the log odds that signs add to a cause, by the name of the sign.

    Example:
        >>> signs(loss_flat=1.0, loss_falls=-2.0)["loss_falls"]
        -2.0
    """
    return MappingProxyType(weights)


@dataclass(frozen=True)
class Clue:
    """Evidence for a cause, or against it.

    Attributes:
        words: what was seen, with its numbers.
        weight: log odds that it adds to the cause: positive for the cause, negative against it.
    """

    words: str
    weight: float


class CauseRule(Plugin):
    """Mistake that people make, and its traces in a history.

    Set `name`, `title`, `remedy` and `weights`: log odds for signs that attnwatch looks for in every run (see
    `attnwatch.diagnosis.signs`). For traces of another kind, implement `look`. A cause that a check can find has the
    name of the check.

    Example:
        >>> import attnwatch
        >>> class StaleCache(attnwatch.CauseRule):
        ...     \"\"\"Batches come from a cache that is never renewed.\"\"\"
        ...
        ...     name = "stale_cache"
        ...     title = "the batches come from a stale cache"
        ...     remedy = "Delete the cache."
        ...     weights = {"loss_comes_again": 2.0, "loss_noisy": -1.0}
        >>> _ = attnwatch.register(StaleCache)
        >>> attnwatch.unregister(StaleCache)

    Attributes:
        name: name of the cause; the name of the check that finds it, if there is one.
        title: the mistake in words, as part of a sentence.
        remedy: what the user can do.
        prior: log odds before anything is seen: how common the mistake is among those that leave no clear trace.
        weights: log odds that each sign adds, by the name of the sign.
    """

    registry: ClassVar[Registry["CauseRule"]] = Registry("cause", "attnwatch.diagnosis.causes", as_instances=True)
    title: ClassVar[str] = ""
    remedy: ClassVar[str] = ""
    prior: ClassVar[float] = 0.0
    weights: ClassVar[Mapping[str, float]] = signs()

    def look(self, run: RunCourse) -> Iterator[Clue]:
        """Yield the clues for and against the cause; by default, the signs in `weights` that were seen."""
        seen = run.memo("signs", signs_of)
        for name, weight in self.weights.items():
            if name in seen:
                yield Clue(seen[name], weight)

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` if a part of the declaration is missing or wrong."""
        cause = cls.registry.describe(plugin)
        for attribute in ("title", "remedy"):
            if not getattr(plugin, attribute):
                raise ConfigurationError(f"{cause} must have a `{attribute}`, which is shown to the user.")
        unknown = sorted(set(plugin.weights) - set(SIGNS))
        if unknown:
            raise ConfigurationError(
                f"{cause} has `weights` for unknown signs: {', '.join(unknown)}; "
                f"the known signs are {', '.join(SIGNS)}."
            )
        if not plugin.weights and cls.look is CauseRule.look:
            raise ConfigurationError(f"{cause} must have `weights`, or a method `look(run)`; see attnwatch.CauseRule.")
        if not all(math.isfinite(weight) for weight in (plugin.prior, *plugin.weights.values())):
            raise ConfigurationError(f"{cause} must have finite numbers as `prior` and `weights`.")
