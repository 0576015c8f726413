"""Verdicts as markdown."""

import math
from enum import Enum

from attnwatch.diagnosis import Diagnosis, Finding, RunStatus


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """Return the verdict, then each finding in bold with its severity, then the notes in italics."""
    risk = "not known yet" if math.isnan(diagnosis.risk) else f"{diagnosis.risk:.2f}"
    watch = ": watch it" if diagnosis.status is RunStatus.AT_RISK else ""
    lines = [f"**{_readable(diagnosis.status)}** · risk {risk}{watch} · step {diagnosis.step}"]
    if diagnosis.reasons:
        lines.append(f"The risk rests on: {'; '.join(diagnosis.reasons)}")
    findings = (_finding_markdown(finding, shows_causes=shown) for finding, shown in diagnosis.shown)
    return "\n\n".join([*lines, *findings])


def _finding_markdown(finding: Finding, *, shows_causes: bool) -> str:
    evidence = ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())
    where = f"since step {finding.step}"
    if finding.is_note:
        head = f"- *Note ({_readable(finding.kind)}), {where}: {finding.message}*"
    else:
        severity = f"severity {finding.severity:.2f}"
        head = f"- **{_readable(finding.kind)}** {where}, {severity}: {finding.message}"
    parts = [head, f"  {evidence}"] if evidence else [head]
    return "\n\n".join([*parts, *(_causes_markdown(finding) if shows_causes else ())])


def _causes_markdown(finding: Finding) -> list[str]:
    """Return the causes as a list within the item of the finding."""
    lines = zip(finding.causes, finding.cause_lines, strict=True)
    items = [
        f"    {number}. **{cause.name.replace('_', ' ')}**{line.removeprefix(cause.name)}"
        for number, (cause, line) in enumerate(lines, start=1)
    ]
    return [f"  {finding.causes_title.capitalize()}:", "\n".join(items)]


def _readable(value: Enum) -> str:
    return value.value.replace("_", " ")
