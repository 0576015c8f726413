"""Base class of the rules that find faults, and the names that a rule needs."""

from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar, Literal, TypeVar

from attnwatch.diagnosis.evidence import Evidence, Symptom, earliest, latest
from attnwatch.diagnosis.status import RunStatus
from attnwatch.diagnosis.thresholds import require_not_negative
from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry, register

__all__ = ["Evidence", "FindingRule", "RunStatus", "Symptom", "earliest", "latest", "register"]

RuleT = TypeVar("RuleT", bound="FindingRule")


@dataclass(frozen=True)
class FindingRule(Plugin):
    """Rule that finds one kind of fault. Its thresholds are the fields of a frozen dataclass.

    `FindingKind`, `on_finding`, dashboards and the tables of the documentation follow from the declaration. The first
    line of the docstring says what the finding means. Thresholds are non-negative numbers; `enter` and `leave` form a
    hysteresis and keep the order of their defaults.

    Example:
        >>> import attnwatch
        >>> @dataclass(frozen=True)
        ... class BroadAttention(attnwatch.FindingRule):
        ...     \"\"\"Attention reaches far back.\"\"\"
        ...
        ...     name = "broad_attention"
        ...     status = attnwatch.RunStatus.NOT_CONVERGING
        ...     remedy = "Check the sliding window."
        ...     enter: float = 1000.0
        ...     leave: float = 900.0
        ...
        ...     def look(self, evidence):
        ...         distance = evidence.mean("distance")
        ...         found = evidence.flags(distance > self.enter, distance < self.leave)
        ...         return evidence.symptom(found, "attention reaches far back", severity=0.5)
        >>> _ = attnwatch.register(BroadAttention)
        >>> attnwatch.FindingKind.BROAD_ATTENTION.value
        'broad_attention'
        >>> attnwatch.unregister(BroadAttention)

    Attributes:
        name: name of the finding; its kind is `FindingKind(name)`.
        status: status of a run that the finding decides: `RunStatus.NOT_CONVERGING` or `RunStatus.UNSTABLE`; None if it
            never decides and so is always a note.
        remedy: second half of the message: what the user can do.
        note: second half of the message if the finding is only a note.
        counts_anywhere: the finding decides at any site, even if it is not widespread (see `Thresholds`).
        known_at_once: the finding is reported however short the run is.
        is_fallback: the rule is used only if no other finding decides the status.
        notes_have_causes: causes are ranked for notes too, as these ask the user to check something.
        judges: runs that the rule judges: those with "attention", those with a "loss" but no attention, or "both".
        enabled: False switches the rule off.

    Raises:
        ConfigurationError: a threshold is wrong.
    """

    registry: ClassVar[Registry["FindingRule"]] = Registry("finding", "attnwatch.diagnosis.findings", as_instances=True)
    status: ClassVar[RunStatus | None] = None
    remedy: ClassVar[str] = ""
    note: ClassVar[str] = "It does not bear on the status of the run."
    counts_anywhere: ClassVar[bool] = False
    known_at_once: ClassVar[bool] = False
    is_fallback: ClassVar[bool] = False
    notes_have_causes: ClassVar[bool] = False
    judges: ClassVar[Literal["attention", "loss", "both"]] = "attention"

    enabled: bool = field(default=True, kw_only=True)

    def look(self, evidence: Evidence) -> Symptom | None:
        """Return the symptom at the last observation, usually from `evidence.symptom`; None if there is none."""
        raise NotImplementedError

    def of_budget(self: RuleT, total_steps: int | None) -> RuleT:
        """Return the rule for a run of this many steps (None: unknown). Rules passed by a user stay unchanged."""
        return self

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise ConfigurationError(f"`enabled` must be True or False, got {self.enabled!r}.")
        defaults: dict[str, Any] = {
            each.name: each.default
            for each in fields(self)
            if isinstance(each.default, Real) and not isinstance(each.default, bool)
        }
        require_not_negative(self, defaults)
        pair = sorted(defaults.keys() & {"enter", "leave"}, key=defaults.__getitem__)
        values = [getattr(self, name) for name in pair]
        if values != sorted(values):
            raise ConfigurationError(
                f"`{pair[0]}` must not be above `{pair[1]}`, got {values[0]!r} and {values[1]!r}: a flag can't be "
                "raised and lowered at once; give both."
            )

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` if part of the declaration is missing or wrong."""
        rule = cls.registry.describe(plugin)
        if plugin.status not in (None, RunStatus.NOT_CONVERGING, RunStatus.UNSTABLE):
            allowed = "RunStatus.NOT_CONVERGING, RunStatus.UNSTABLE or None"
            raise ConfigurationError(f"{rule} must have {allowed} as `status`, got {plugin.status!r}.")
        if plugin.status is not None and not plugin.remedy:
            raise ConfigurationError(f"{rule} must have a `remedy`, as it decides the status of a run.")
        if cls.look is FindingRule.look:
            raise ConfigurationError(f"{rule} must have a method `look(evidence)`; see attnwatch.FindingRule.")
