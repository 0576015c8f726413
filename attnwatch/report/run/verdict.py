"""Verdict on a run as the first screen of its page: a sentence, what to do, and how sure it is."""

import math
from dataclasses import dataclass

from attnwatch.diagnosis import Diagnosis, Finding, RunStatus
from attnwatch.diagnosis.kinds import remedy_of
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.runs import RunRecord

_SENTENCES = {
    RunStatus.UNSTABLE: "This run is unstable.",
    RunStatus.NOT_CONVERGING: "This run does not converge.",
    RunStatus.AT_RISK: "Nothing was found, but this run resembles runs that failed.",
    RunStatus.HEALTHY: "This run looks sound.",
    RunStatus.UNDETERMINED: "This run can't be judged yet.",
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
        sentence: status of the run.
        fault: what is wrong, with its numbers; empty if nothing was found.
        where: names of the modules or parameters where it holds, if `fault` does not name them.
        causes: what is likely behind it, most likely first, in words.
        actions: what to do, most important first.
        certainty: what the verdict rests on.
    """

    tone: str
    sentence: str
    fault: str
    where: tuple[str, ...]
    causes: tuple[str, ...]
    actions: tuple[str, ...]
    certainty: str


def verdict_of(record: RunRecord) -> Verdict:
    """Return the verdict on a run in words."""
    diagnosis = record.diagnosis
    faults = [finding for finding in diagnosis.findings if not finding.is_note]
    first = faults[0] if faults else None
    fault = "" if first is None else fault_of(first)
    return Verdict(
        tone=_TONES[diagnosis.status],
        sentence=_SENTENCES[diagnosis.status],
        fault=fault,
        where=() if first is None or any(site in fault for site in first.sites) else first.sites,
        causes=() if first is None else tuple(f"{cause.title} ({cause.score:.2f})" for cause in first.causes),
        actions=tuple(dict.fromkeys(map(_action, faults))) or (_without_fault(record),),
        certainty=_certainty(record, first),
    )


def fault_of(finding: Finding) -> str:
    """Return what was seen, without what to do about it."""
    what = finding.message.removesuffix(remedy_of(finding.kind.value)).rstrip(" .")
    return f"{what[:1].upper()}{what[1:]}."


def _action(finding: Finding) -> str:
    """Return the remedy of the likeliest cause, or of the finding if it has no causes."""
    first = finding.causes[0] if finding.causes else None
    return remedy_of(finding.kind.value) if first is None or not first.remedy else first.remedy


def _without_fault(record: RunRecord) -> str:
    status = record.diagnosis.status
    if status is RunStatus.AT_RISK:
        return "Watch it, and look at what the risk rests on: " + "; ".join(record.diagnosis.reasons) + "."
    if status is RunStatus.HEALTHY:
        return "Nothing needs to be done."
    if not record.history.sites:
        return "Train with an AttentionMonitor, so that there is more than the loss to judge by."
    history = record.history
    wanted = Thresholds().of_budget(history.total_steps)
    if history.total_steps is not None and history.total_steps < wanted.min_steps:
        return f"Nothing: a run of {history.total_steps} steps is too short; a verdict needs {wanted.min_steps:.0f}."
    return (
        f"Let it train on: a verdict needs {wanted.min_observations} observations (there are {len(history)}) over "
        f"{wanted.min_steps:.0f} steps (there are {history.num_steps})."
    )


def _certainty(record: RunRecord, first: Finding | None) -> str:
    diagnosis = record.diagnosis
    if first is not None and first in record.checked:
        return f"This is a fact: the checkup found it at step {first.step}, by looking at the training itself."
    if first is not None:
        return f"Seen since step {first.step}. {_risk_sentence(diagnosis)}"
    if record.source and not record.history.sites:
        return f"Only a loss could be read from this {record.source}, and a loss alone shows few faults."
    return _risk_sentence(diagnosis)


def _risk_sentence(diagnosis: Diagnosis) -> str:
    if math.isnan(diagnosis.risk):
        return "The risk that it fails is not known yet."
    return f"The risk is {diagnosis.risk:.2f}: of runs like this one, about {10 * diagnosis.risk:.0f} in 10 failed."
