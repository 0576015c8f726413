"""Verdicts as markdown."""

import math
from enum import Enum

from attnwatch.diagnosis import Diagnosis, Finding, RunStatus


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """Return the verdict, then each finding in bold with its severity, then the notes in italics."""
    risk = "not known yet" if math.isnan(diagnosis.risk) else f"{diagnosis.risk:.2f}"
    watch = ": watch it" if diagnosis.status is RunStatus.AT_RISK else ""
    lines = [f"**{_readable(diagnosis.status)}** · risk {risk}{watch} · step {diagnosis.step}"]
    return "\n\n".join([*lines, *map(_finding_markdown, diagnosis.findings)])


def _finding_markdown(finding: Finding) -> str:
    evidence = ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())
    where = f"since step {finding.step}"
    if finding.is_note:
        head = f"- *Note ({_readable(finding.kind)}), {where}: {finding.message}*"
    else:
        severity = f"severity {finding.severity:.2f}"
        head = f"- **{_readable(finding.kind)}** {where}, {severity}: {finding.message}"
    return f"{head}\n\n  {evidence}" if evidence else head


def _readable(value: Enum) -> str:
    return value.value.replace("_", " ")
