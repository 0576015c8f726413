"""What a diagnosis says: status, findings, evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class RunStatus(str, Enum):
    """Verdict on a run as a whole."""

    UNDETERMINED = "undetermined"
    """Too little has been observed to claim anything."""
    HEALTHY = "healthy"
    NOT_CONVERGING = "not_converging"
    """Attention stays uniform in most of the model, or the run is like runs that failed."""
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
    NON_FINITE = "non_finite"
    UNPROMISING = "unpromising"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, now.

    Attributes:
        kind: which.
        sites: where, in module order; empty where it concerns the run as a whole.
        step: global step since which it holds.
        severity: 0 (worth a look) to 1 (the run is lost).
        message: what was seen and what to do about it.
        evidence: the numbers behind it, by name.
    """

    kind: FindingKind
    sites: tuple[str, ...]
    step: int
    severity: float
    message: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """Verdict on a run at the last step of its history.

    Attributes:
        status: as a whole.
        findings: what is wrong now, most severe first.
        step: global step of the last observation; -1 for an empty history.
        risk: 0 to 1: of runs like this one, the share that failed (see docs/verdicts.md); 0 before there is evidence.
    """

    status: RunStatus
    findings: tuple[Finding, ...]
    step: int
    risk: float = 0.0

    def __str__(self) -> str:
        lines = [f"{self.status.value.replace('_', ' ')} (risk {self.risk:.2f}) at step {self.step}"]
        lines += [f"- {finding.kind.value} since step {finding.step}: {finding.message}" for finding in self.findings]
        return "\n".join(lines)
