"""Verdicts and answers in words, for dashboards."""

import html
import math
import re
from enum import Enum
from typing import TYPE_CHECKING

from attnwatch.diagnosis import Diagnosis, Finding, RunStatus

if TYPE_CHECKING:
    from attnwatch.explain import Answers

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")
_LINE_END = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_CLAIM = "What it claims as its reason (text that it finds likely, not an explanation)"


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """The verdict, then each finding in bold with its severity, then the notes in italics."""
    risk = "not known yet" if math.isnan(diagnosis.risk) else f"{diagnosis.risk:.2f}"
    watch = ": watch it" if diagnosis.status is RunStatus.AT_RISK else ""
    lines = [f"**{_words(diagnosis.status)}** · risk {risk}{watch} · step {diagnosis.step}"]
    return "\n\n".join([*lines, *map(_finding_markdown, diagnosis.findings)])


def _finding_markdown(finding: Finding) -> str:
    evidence = ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())
    where = f"since step {finding.step}"
    if finding.is_note:
        head = f"- *Note ({_words(finding.kind)}), {where}: {finding.message}*"
    else:
        severity = f"severity {finding.severity:.2f}"
        head = f"- **{_words(finding.kind)}** {where}, {severity}: {finding.message}"
    return f"{head}\n\n  {evidence}" if evidence else head


def _words(value: Enum) -> str:
    return value.value.replace("_", " ")


def answers_markdown(answers: "Answers", most: int = 20) -> str:
    """The first questions with what the model answered, how sure it says it is, and what it claims as its reason."""
    number = len(answers.labels)
    lines = [f"**{sum(answers.correct)} of {number} questions right**; {len(answers.skipped)} skipped"]
    lines += [f"skipped: {literal(prompt)} ({literal(why)})" for prompt, why in answers.skipped[:most]]
    lines += [_answer_markdown(answers, index) for index in range(min(number, most))]
    if number > most:
        lines.append(f"and {number - most} more")
    return "\n\n".join(lines)


def literal(text: str) -> str:
    """The text in one line of markdown, without anything in it that has a meaning there or in HTML."""
    line = " ".join(_LINE_END.sub(" ↵ ", text).split())
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def _answer_markdown(answers: "Answers", index: int) -> str:
    prediction, label = answers.predictions[index], answers.labels[index]
    lines = [f"- {literal(answers.prompts[index])}", ""]
    for at, (choice, probability) in enumerate(
        zip(answers.choices[index], answers.probabilities[index].tolist(), strict=False)
    ):
        marks = [mark for mark, holds in (("its answer", at == prediction), ("right", at == label)) if holds]
        lines.append(f"  - {literal(choice)}: {probability:.0%}" + (f" **({', '.join(marks)})**" if marks else ""))
    if answers.stated_confidence:
        stated = answers.stated_confidence[index]
        reply = f" (it wrote: {literal(answers.stated_replies[index])})" if answers.stated_replies else ""
        lines.append(f"  - sure, as it says: {'no percentage' if math.isnan(stated) else f'{stated:.0%}'}{reply}")
    if answers.claimed_reasons:
        lines.append(f"  - {_CLAIM}: {literal(answers.claimed_reasons[index])}")
    return "\n".join(lines)
