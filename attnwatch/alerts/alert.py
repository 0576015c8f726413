"""Content of an alert."""

import platform
from dataclasses import dataclass

from attnwatch.diagnosis import Finding, RunStatus
from attnwatch.diagnosis.kinds import status_of
from attnwatch.loggers import AlertLevel


@dataclass(frozen=True)
class Alert:
    """Message about a finding.

    Attributes:
        title: kind of the finding and its step, fewer than 64 characters for attnwatch's own kinds.
        text: description of the finding, its causes, and the machine.
        level: "error" if the run is unstable, otherwise "warning".
    """

    title: str
    text: str
    level: AlertLevel

    @classmethod
    def of(cls, finding: Finding) -> "Alert":
        """Return the alert about a finding."""
        is_error = status_of(finding.kind.value) is RunStatus.UNSTABLE
        title = f"attnwatch: {finding.kind.value} at step {finding.step}"
        return cls(title, f"{finding}\n\nThe training runs on {platform.node()}.", "error" if is_error else "warning")
