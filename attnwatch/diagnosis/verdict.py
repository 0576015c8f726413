"""What a diagnosis says: status, findings, evidence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class RunStatus(str, Enum):
    """Verdict on a run as a whole."""

    UNDETERMINED = "undetermined"
    """Too little is known to claim anything: the risk is nan."""
    HEALTHY = "healthy"
    AT_RISK = "at_risk"
    """Watch it: nothing was found, but of runs like this one seven in ten fail, or more."""
    NOT_CONVERGING = "not_converging"
    """Attention stays uniform or sees nothing in most of the model, or the run is like runs that failed."""
    UNSTABLE = "unstable"
    """Attention collapses, its logits explode, or values are not finite."""

    @property
    def is_alarm(self) -> bool:
        """The run is likely to fail."""
        return self in (RunStatus.NOT_CONVERGING, RunStatus.UNSTABLE)


class FindingKind(str, Enum):
    """What can be found."""

    UNIFORM_ATTENTION = "uniform_attention"
    ENTROPY_COLLAPSE = "entropy_collapse"
    EXPLODING_LOGITS = "exploding_logits"
    FROZEN_ATTENTION = "frozen_attention"
    BLIND_ATTENTION = "blind_attention"
    NON_FINITE = "non_finite"
    UNPROMISING = "unpromising"


@dataclass(frozen=True)
class Finding:
    """One thing that was seen, and holds now: a reason for the run's status, or a note.

    Attributes:
        kind: which.
        sites: where, in module order; empty where it concerns the run as a whole.
        step: global step since which it holds.
        severity: 0 to 1 (the run is lost); 0 for a note.
        message: what was seen and what to do about it.
        evidence: the numbers behind it, by name.
        is_note: it does not bear on the run's status: too few sites have it, or sound runs have it too. A note
            raises no risk, warns nobody and stops nothing.
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
        status: as a whole.
        findings: what was seen and holds now, most severe first, notes last.
        step: global step of the last observation; -1 for an empty history.
        risk: 0 to 1: of runs like this one, the share that failed (see docs/verdicts.md); nan before there is evidence.
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
