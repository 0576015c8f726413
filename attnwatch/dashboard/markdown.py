"""Verdicts as markdown."""

import math
from enum import Enum

from attnwatch.dashboard.answers import literal
from attnwatch.diagnosis import Diagnosis, Finding, RunStatus
from attnwatch.utils.messages import listed

_IN_A_SENTENCE = {
    RunStatus.UNDETERMINED: "Too little has been observed for a verdict. Let the run continue.",
    RunStatus.HEALTHY: "No fault was found, and the risk is low. Nothing needs to be done.",
    RunStatus.AT_RISK: "No fault was found, but about seven in ten runs like this one fail, or more: watch it, and "
    "compare the values that the risk rests on with those of an earlier run.",
    RunStatus.NOT_CONVERGING: "The run will probably not reach its goal. Look at the causes below before you spend "
    "more time on it.",
    RunStatus.UNSTABLE: "The run is breaking down. Stop it, remove the cause, and continue from an earlier checkpoint.",
}

_HALF = (
    "No fault was found, but at least half of the runs with this risk fail: compare the curves with those of an "
    "earlier run."
)


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """Return the verdict and the advice, a table of the findings, then each finding with its causes."""
    return "\n\n".join([*verdict_paragraphs(diagnosis), *finding_paragraphs(diagnosis)])


def verdict_paragraphs(diagnosis: Diagnosis) -> list[str]:
    """Return the verdict, the advice and, for a high risk, the values that it rests on."""
    risk = "not known yet" if math.isnan(diagnosis.risk) else f"{diagnosis.risk:.2f}"
    lines = [
        f"## {_readable(diagnosis.status)}: risk {risk}, step {diagnosis.step}",
        _advice(diagnosis),
    ]
    if diagnosis.reasons:
        lines.append(f"The risk rests on: {'; '.join(diagnosis.reasons)}")
    return lines


def _advice(diagnosis: Diagnosis) -> str:
    """Return the verdict in a sentence, and the advice."""
    is_undecided = diagnosis.status is RunStatus.HEALTHY and diagnosis.risk >= 0.5
    return _HALF if is_undecided else _IN_A_SENTENCE[diagnosis.status]


def finding_paragraphs(diagnosis: Diagnosis) -> list[str]:
    """Return a table of the findings, then each finding with its causes; empty if there are none."""
    if not diagnosis.findings:
        return []
    findings = (_finding_markdown(finding, shows_causes=shown) for finding, shown in diagnosis.shown)
    return ["\n".join(_table(diagnosis)), *findings]


def _table(diagnosis: Diagnosis) -> list[str]:
    rows = [
        f"| {literal(_readable(finding.kind))} | {finding.step} | {_weight(finding)} | {_places(finding)} |"
        for finding in diagnosis.findings
    ]
    return ["| finding | since step | severity | where |", "|---|---|---|---|", *rows]


def _weight(finding: Finding) -> str:
    return "note" if finding.is_note else f"{finding.severity:.2f}"


def _places(finding: Finding) -> str:
    if not finding.sites:
        return "whole run"
    return listed(list(map(literal, finding.sites)), most=1)


def _finding_markdown(finding: Finding, *, shows_causes: bool) -> str:
    evidence = ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())
    where = f"since step {finding.step}"
    if finding.is_note:
        head = f"- *Note ({_readable(finding.kind)}), {where}: {finding.message}*"
    else:
        severity = f"severity {finding.severity:.2f}"
        head = f"- **{_readable(finding.kind)}** {where}, {severity}: {finding.message}"
    parts = [head, f"    {evidence}"] if evidence else [head]
    return "\n\n".join([*parts, *(_causes_markdown(finding) if shows_causes else ())])


def _causes_markdown(finding: Finding) -> list[str]:
    """Return the causes as a nested list below the finding."""
    lines = zip(finding.causes, finding.cause_lines, strict=True)
    items = [
        f"    {number}. **{cause.name.replace('_', ' ')}**{line.removeprefix(cause.name)}"
        for number, (cause, line) in enumerate(lines, start=1)
    ]
    return [f"    {finding.causes_title.capitalize()}:", "\n".join(items)]


def _readable(value: Enum) -> str:
    return value.value.replace("_", " ")
