"""Findings and the diagnosis that they add up to."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from attnwatch.diagnosis.kinds import FindingKind
from attnwatch.diagnosis.status import RunStatus
from attnwatch.utils.notebooks import as_html

# Number of clues that are shown for each cause.
_MOST_FOR, _MOST_AGAINST = 3, 2
# Least score at which the first cause is called likely.
_CLEAR = 0.25


@dataclass(frozen=True)
class Cause:
    """Mistake that may be behind a finding.

    Attributes:
        name: name of the cause; the name of the check that finds it, if there is one.
        score: share of the evidence, 0 to 1: the odds of the cause over the sum of those of all causes and of one that
            nobody has declared. The odds are set by hand, so it orders causes but is not a calibrated probability;
            `python -m benchmarks.causes` measures how often causes with such a score are right. 1 if a checkup has
            found the cause.
        speaks_for, speaks_against: clues for and against the cause, with their numbers, strongest first.
        title: the mistake in words.
        remedy: what the user can do.
        is_fact: flag that a checkup has found the cause.

    Example:
        >>> print(Cause("rate_too_low", 0.6, ("the loss is flat from the start",), title="the rate is too low"))
        rate_too_low (0.60): the rate is too low. For: the loss is flat from the start.
    """

    name: str
    score: float
    speaks_for: tuple[str, ...] = ()
    speaks_against: tuple[str, ...] = ()
    title: str = ""
    remedy: str = ""
    is_fact: bool = False

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Cause":
        """Return the cause with these attributes, as they are after a way through JSON."""
        clues = {name: tuple(stored[name]) for name in ("speaks_for", "speaks_against")}
        return cls(**{**stored, **clues})

    @property
    def is_clear(self) -> bool:
        """True if so much of the evidence points to the cause that it can be called likely."""
        return self.is_fact or self.score >= _CLEAR

    @property
    def clues(self) -> str:
        """Strongest clues for and against the cause, as sentences; of a fact, where it was found."""
        if self.is_fact:
            return f"{'; '.join(self.speaks_for)}."
        seen = [("For", self.speaks_for[:_MOST_FOR]), ("Against", self.speaks_against[:_MOST_AGAINST])]
        return " ".join(f"{side}: {'; '.join(words).rstrip('.')}." for side, words in seen if words)

    def described(self, clues: str) -> str:
        """Return name, score, title, these clues, and the remedy."""
        score = "" if self.is_fact else f" ({self.score:.2f})"
        title = f" {self.title}." if self.title else ""
        return f"{self.name}{score}:{title} {clues} {self.remedy}".rstrip()

    def __str__(self) -> str:
        return self.described(self.clues)


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
        is_note: flag that it does not affect the status of the run: too few sites have it, or sound runs have it too. A
            note raises no risk, causes no warning and stops nothing.
        causes: up to three possible causes, most likely first; empty for faults that a checkup has found, which are
            facts.
        advice: what to do about it: the last sentences of `message`.

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
    causes: tuple[Cause, ...] = ()
    advice: str = ""

    @property
    def what(self) -> str:
        """Sentence on what was seen: `message` without `advice`."""
        seen = self.message.removesuffix(self.advice).rstrip(" .")
        is_word = seen.partition(" ")[0].isalpha()  # not the name of a module or function
        return f"{seen[:1].upper() if is_word else seen[:1]}{seen[1:]}."

    @property
    def headline(self) -> str:
        """Kind, step and message, without the causes."""
        where = f"since step {self.step}: {self.message}"
        return f"note, {self.kind.value}, {where}" if self.is_note else f"{self.kind.value} {where}"

    @property
    def causes_title(self) -> str:
        """Heading of the list of causes."""
        if self.causes and self.causes[0].is_fact:
            return "cause"
        is_clear = bool(self.causes) and self.causes[0].is_clear
        return f"{'likely' if is_clear else 'possible'} causes (share of the evidence{'' if is_clear else ': little'})"

    @property
    def cause_lines(self) -> list[str]:
        """One line for each cause; clues that an earlier cause has too are not repeated."""
        lines: list[str] = []
        numbers: dict[frozenset[str], int] = {}
        for number, cause in enumerate(self.causes, start=1):
            shown = frozenset((*cause.speaks_for[:_MOST_FOR], *cause.speaks_against[:_MOST_AGAINST]))
            earlier = numbers.setdefault(shown, number)
            clues = cause.clues if earlier == number else f"Same evidence as cause {earlier}."
            lines.append(cause.described(clues))
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the finding as numbers, strings, lists and dictionaries."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {"kind": self.kind.value, "sites": list(self.sites), "evidence": dict(self.evidence)}
        return values | {"causes": [asdict(cause) for cause in self.causes]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Finding":
        """Return the finding that `as_json` stored.

        Raises:
            ValueError: its kind is not registered, or a number is none.
        """
        parts = {
            "kind": FindingKind(stored["kind"]),
            "sites": tuple(map(str, stored["sites"])),
            "step": int(stored["step"]),
            "severity": float(stored["severity"]),
            "message": str(stored["message"]),
            "evidence": {name: float(value) for name, value in stored.get("evidence", {}).items()},
            "causes": tuple(map(Cause.from_json, stored.get("causes", ()))),
        }
        return cls(**{**stored, **parts})

    def __str__(self) -> str:
        if self.is_note or not self.causes:
            return self.headline
        numbered = (f"  {number}. {line}" for number, line in enumerate(self.cause_lines, start=1))
        return "\n".join([self.headline, f"  {self.causes_title}:", *numbered])


@dataclass(frozen=True)
class Diagnosis:
    """Verdict on a run at the last step of its history.

    Attributes:
        status: status of the run as a whole.
        findings: faults that were seen and still hold, most severe first, notes last.
        step: global step of the last observation; -1 for an empty history.
        risk: share of the runs like this one that failed, 0 to 1 (see `docs/explanation/diagnosis.md`); nan
            before there is evidence.
        reasons: evidence that the risk is based on, in words with numbers, if the status is AT_RISK.

    Example:
        >>> print(Diagnosis(RunStatus.HEALTHY, (), step=390, risk=0.2))
        healthy (risk 0.20) at step 390
    """

    status: RunStatus
    findings: tuple[Finding, ...]
    step: int
    risk: float = math.nan
    reasons: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as numbers, strings, lists and dictionaries; the risk is None where it is nan."""
        return {
            "status": self.status.value,
            "findings": [finding.as_json() for finding in self.findings],
            "step": self.step,
            "risk": None if math.isnan(self.risk) else self.risk,
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Diagnosis":
        """Return the diagnosis that `as_json` stored, without findings of kinds that are not registered."""
        known = [each for each in stored["findings"] if each["kind"] in FindingKind]
        risk = math.nan if stored["risk"] is None else float(stored["risk"])
        findings = tuple(map(Finding.from_json, known))
        return cls(RunStatus(stored["status"]), findings, int(stored["step"]), risk, tuple(stored["reasons"]))

    @property
    def verdict(self) -> str:
        """Status and risk in words."""
        status = self.status.value.replace("_", " ")
        if math.isnan(self.risk):
            return f"{status} (risk not known yet)"
        watch = ": watch it" if self.status is RunStatus.AT_RISK else ""
        return f"{status} (risk {self.risk:.2f}{watch})"

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def __str__(self) -> str:
        reasons = [f"- the risk rests on: {'; '.join(self.reasons)}"] if self.reasons else []
        findings = (f"- {str(finding) if shows_causes else finding.headline}" for finding, shows_causes in self.shown)
        return "\n".join([f"{self.verdict} at step {self.step}", *reasons, *findings])

    @property
    def shown(self) -> Iterator[tuple[Finding, bool]]:
        """Yield each finding, and whether its causes are to be shown: the same causes are shown once."""
        last: tuple[Cause, ...] = ()
        for finding in self.findings:
            is_new = bool(finding.causes) and not finding.is_note and finding.causes != last
            last = finding.causes if is_new else last
            yield finding, is_new
