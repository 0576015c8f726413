"""Findings and the diagnosis that they add up to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from attnwatch.diagnosis.kinds import FindingKind
from attnwatch.diagnosis.status import RunStatus


@dataclass(frozen=True)
class Finding:
    """Fault that was seen and still holds: a reason for the status of the run, or a note.

    Attributes:
        kind: kind of the finding.
        sites: names of the sites where it holds, in module order; empty if it concerns the run as a whole.
        step: global step since which it holds.
        severity: 0 to 1 (the run is lost); 0 for a note.
        message: what was seen and what to do about it.
        evidence: numbers behind it, by name.
        is_note: it does not bear on the status of the run: too few sites have it, or sound runs have it too. A note
            raises no risk, warns nobody and stops nothing.

    Example:
        >>> print(Finding(FindingKind.NON_FINITE, ("layers.3.attn",), 120, 1.0, "logits are nan"))
        non_finite since step 120: logits are nan
    """

    kind: FindingKind
    sites: tuple[str, ...]
    step: int
    severity: float
    message: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    is_note: bool = False

    def __str__(self) -> str:
        where = f"since step {self.step}: {self.message}"
        return f"note, {self.kind.value}, {where}" if self.is_note else f"{self.kind.value} {where}"


@dataclass(frozen=True)
class Diagnosis:
    """Verdict on a run at the last step of its history.

    Attributes:
        status: status of the run as a whole.
        findings: what was seen and still holds, most severe first, notes last.
        step: global step of the last observation; -1 for an empty history.
        risk: share of the runs like this one that failed, 0 to 1 (see `docs/explanation/diagnosis.md`); nan
            before there is evidence.

    Example:
        >>> print(Diagnosis(RunStatus.HEALTHY, (), step=390, risk=0.2))
        healthy (risk 0.20) at step 390
    """

    status: RunStatus
    findings: tuple[Finding, ...]
    step: int
    risk: float = math.nan

    @property
    def verdict(self) -> str:
        """Status and risk in words."""
        status = self.status.value.replace("_", " ")
        if math.isnan(self.risk):
            return f"{status} (risk not known yet)"
        watch = ": watch it" if self.status is RunStatus.AT_RISK else ""
        return f"{status} (risk {self.risk:.2f}{watch})"

    def __str__(self) -> str:
        return "\n".join([f"{self.verdict} at step {self.step}", *(f"- {finding}" for finding in self.findings)])
