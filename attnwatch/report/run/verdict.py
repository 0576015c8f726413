"""Verdict on a run, as the first screen of its page: a sentence, what to do, and how certain it is."""

import math
from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis import Cause, Diagnosis, Finding, FindingRule, RunStatus
from attnwatch.diagnosis.evidence import is_observed
from attnwatch.diagnosis.risk import default_risk_model
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.runs import RunRecord
from attnwatch.utils.messages import counted, share_in_words

_SENTENCES = {
    RunStatus.UNSTABLE: "This run is unstable",
    RunStatus.NOT_CONVERGING: "This run is not converging",
    RunStatus.AT_RISK: "Nothing was found, but this run resembles runs that failed",
    RunStatus.HEALTHY: "This run looks sound",
    RunStatus.UNDETERMINED: "This run can't be judged yet",
}
_TONES = {
    RunStatus.UNSTABLE: "bad",
    RunStatus.NOT_CONVERGING: "bad",
    RunStatus.AT_RISK: "watch",
    RunStatus.HEALTHY: "good",
    RunStatus.UNDETERMINED: "unknown",
}


@dataclass(frozen=True)
class Verdict:
    """Verdict in words.

    Attributes:
        tone: "bad", "watch", "good" or "unknown", for the colour of the card.
        sentence: status of the run, and what is wrong in a few words.
        fault: what is wrong, with its numbers; empty if nothing was found.
        where: names of the affected modules or parameters, if `fault` does not name them.
        causes_title: heading of the causes.
        causes: causes, likeliest first, each with what speaks for it and what to do about it.
        actions: what to do if no cause is named, most important first.
        certainty: what the verdict rests on.
    """

    tone: str
    sentence: str
    fault: str
    where: tuple[str, ...]
    causes_title: str
    causes: tuple[tuple[str, str, str], ...]
    actions: tuple[str, ...]
    certainty: str


def verdict_of(record: RunRecord) -> Verdict:
    """Return the verdict on a run in words."""
    diagnosis = record.diagnosis
    faults = [finding for finding in diagnosis.findings if not finding.is_note]
    first = faults[0] if faults else None
    fault, causes = ("", ()) if first is None else (first.what, first.causes)
    unexplained = [finding.advice for finding in faults if finding.advice and not finding.causes]
    return Verdict(
        tone=_TONES[diagnosis.status],
        sentence=_sentence(diagnosis, first),
        fault=fault,
        where=() if first is None or any(site in fault for site in first.sites) else first.sites,
        causes_title="Cause"
        if causes and all(cause.is_fact for cause in causes)
        else "Possible causes, and what to do",
        causes=tuple(map(_cause, causes)),
        actions=tuple(dict.fromkeys(unexplained)) if faults else (_without_fault(record),),
        certainty=_certainty(record, first),
    )


def _sentence(diagnosis: Diagnosis, first: Finding | None) -> str:
    status = _SENTENCES[diagnosis.status]
    if first is None:
        return f"{status}."
    rule = FindingRule.registry.get(first.kind.value)
    if rule is None or not rule.is_fallback:
        return f"{status} ({first.kind.value})."
    is_clear = bool(first.causes) and first.causes[0].is_clear
    return f"{status}, probably because {first.causes[0].title}." if is_clear else f"{status}."


def _cause(cause: Cause) -> tuple[str, str, str]:
    title = cause.title or cause.name.replace("_", " ")
    evidence = "found by the checkup" if cause.is_fact else f"{cause.score:.0%} of the evidence"
    return f"{title[:1].upper()}{title[1:]}", evidence, cause.remedy


def _without_fault(record: RunRecord) -> str:
    status, history = record.diagnosis.status, record.history
    if status is RunStatus.AT_RISK:
        return "Watch it, and look at what the risk rests on: " + "; ".join(record.diagnosis.reasons) + "."
    if status is RunStatus.HEALTHY:
        has_notes = bool(record.diagnosis.findings)
        return "Nothing needs to be done, but read the notes below." if has_notes else "Nothing needs to be done."
    if not history.sites:
        return "Train with an AttentionMonitor, so that the run can be judged by more than its loss."
    wanted = Thresholds().of_budget(history.total_steps)
    if history.total_steps is not None and history.total_steps < wanted.min_steps:
        return f"Nothing: {history.total_steps} steps are too few for a verdict, which needs {wanted.min_steps:.0f}."
    seen = history.at(np.any(is_observed(history.values), axis=-1))
    if wanted.is_enough(history.steps) and not wanted.is_enough(seen.steps):
        return (
            f"Attention was observed at {len(seen)} of {counted(len(history), 'observation')}; find out why: the "
            "coverage of the recorder or monitor has the reasons."
        )
    return (
        f"Let it continue: a verdict needs {wanted.min_observations} observations ({len(seen)} so far) over "
        f"{wanted.min_steps:.0f} steps ({seen.num_steps} so far)."
    )


def _certainty(record: RunRecord, first: Finding | None) -> str:
    diagnosis = record.diagnosis
    if first is not None and record.is_from_checkup(first):
        return f"The checkup observed this fault itself at step {first.step}; it does not depend on the estimated risk."
    if record.source and not record.history.sites:
        return f"Only a loss could be read from this {record.source}, and a loss alone shows few faults."
    if math.isnan(diagnosis.risk):
        return "The risk of failure is not known yet."
    model = default_risk_model()
    lowest = 1 / (1 + math.exp(-model.offset))
    scale = f"the lowest possible risk is {lowest:.2f}, and a run is reported from {model.flag_at:.2f} on"
    if first is None:
        return f"The risk is {diagnosis.risk:.2f}; {scale}."
    number = int((record.history.steps >= first.step).sum())
    seen = f"The finding has held since step {first.step:,}, over {counted(number, 'observation')}."
    failed = f"Of runs like this one, {share_in_words(diagnosis.risk)} failed"
    return f"{seen} {failed} (risk {diagnosis.risk:.2f}; {scale})."
