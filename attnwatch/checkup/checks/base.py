"""Base class of the checks, and the faults that they find."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from attnwatch.checkup.forward import CannotCheck, known
from attnwatch.diagnosis.status import RunStatus
from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry, register

if TYPE_CHECKING:
    from attnwatch.checkup.evidence import StepEvidence

__all__ = ["CannotCheck", "Check", "Fault", "RunStatus", "known", "register"]


@dataclass(frozen=True)
class Fault:
    """Fault that a check has found.

    Attributes:
        what: first half of the message: what is wrong and where, with its numbers.
        sites: names of the modules or parameters that it concerns.
        numbers: evidence by name.
        is_note: True if sound runs look like this too; the fault then does not affect the status of the run.
        remedy: usual repair, in sentences; empty for that of the check.
    """

    what: str
    sites: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    is_note: bool = False
    remedy: str = ""


class Check(Plugin):
    """Check of a training step for one kind of fault, by a fact or by changing one thing in the step's batch.

    `FindingKind`, the table of a checkup and the lists in the documentation follow from the declaration. Set `name` and
    `remedy`, implement `look`, and state the meaning of the finding in the first line of the docstring. Each checkup
    creates its own instance, which may keep state. A check that has no answer raises `CannotCheck` with the reason.

    Example:
        >>> import attnwatch
        >>> class LongBatch(attnwatch.Check):
        ...     \"\"\"The batch is larger than it should be.\"\"\"
        ...
        ...     name = "long_batch"
        ...     remedy = "Lower the batch size."
        ...
        ...     def look(self, step):
        ...         size = step.forward.num_sequences
        ...         return attnwatch.Fault(f"the batch has {size} sequences") if size > 64 else None
        >>> _ = attnwatch.register(LongBatch)
        >>> attnwatch.FindingKind("long_batch").value
        'long_batch'
        >>> attnwatch.unregister(LongBatch)

    Attributes:
        name: name of the finding; its kind is `FindingKind(name)`.
        status: status of a run that has the fault; None if the finding is always a note.
        severity: 0 to 1 (the run is lost).
        remedy: second half of the message: what the user can do.
        decides: True if finding nothing rules out the fault for the whole run, not just for the steps seen.
        looks_again: True if a later answer of a watching check replaces its finding, which may be withdrawn.
        watches: True if the check looks at all of the first steps and at some later ones, until it finds a fault.
    """

    registry: ClassVar[Registry[type["Check"]]] = Registry("check", "attnwatch.checkup.checks")
    status: ClassVar[RunStatus | None] = RunStatus.NOT_CONVERGING
    severity: ClassVar[float] = 0.9
    remedy: ClassVar[str] = ""
    decides: ClassVar[bool] = False
    looks_again: ClassVar[bool] = False
    watches: ClassVar[bool] = False

    def look(self, step: "StepEvidence") -> Fault | None:
        """Return the fault after the backward of a step, before its optimizer steps; None if there is none.

        Raises:
            CannotCheck: there is no answer, for the reason in the message. The check then looks at the next steps.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` if a part of the declaration is missing."""
        described = cls.registry.describe(plugin)
        if not (isinstance(plugin, type) and issubclass(plugin, Check)):
            raise ConfigurationError(f"{described} must be a class: each checkup creates its own instance.")
        if not plugin.remedy:
            raise ConfigurationError(f"{described} must have a `remedy`: what the user can do.")
        if plugin.look is Check.look:
            raise ConfigurationError(f"{described} must have a method `look(step)`; see attnwatch.Check.")
