"""From a history to a verdict."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from attnwatch.diagnosis.evidence import Evidence
from attnwatch.diagnosis.remedies import NOTES, REMEDIES
from attnwatch.diagnosis.risk import Outlook, RiskModel, default_risk_model
from attnwatch.diagnosis.rules import RULES, Symptom
from attnwatch.diagnosis.signals import SIGNALS, numbers_of
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Diagnosis, Finding, FindingKind, RunStatus
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory
from attnwatch.recorder.history import num_steps
from attnwatch.utils.arguments import require_int

_UNSTABLE = {FindingKind.NON_FINITE, FindingKind.EXPLODING_LOGITS, FindingKind.ENTROPY_COLLAPSE}
# These bear on the status wherever they are, not only where they are widespread.
_ANYWHERE = {FindingKind.NON_FINITE, FindingKind.EXPLODING_LOGITS}
# These are known as soon as they are seen, however short the run was watched.
_AT_ONCE = {FindingKind.NON_FINITE, FindingKind.BLIND_ATTENTION}
_MOST_STEPS = 2**53


def diagnose(
    history: AttentionHistory,
    *,
    loss: Sequence[float] | None = None,
    total_steps: int | None = None,
    thresholds: Thresholds | None = None,
    risk_model: RiskModel | None = None,
) -> Diagnosis:
    """Judge a run at the last step of its history, while it runs or from disk.

    Findings have patience and hysteresis: they come up after several observations in a row and do not flicker.
    Before there is evidence the status is UNDETERMINED and the risk nan; only values that are not finite, and masks
    that hide all keys but one, are reported sooner. Findings that do not bear on the status are notes.

    Args:
        history: what was recorded.
        loss: training loss at `history.steps`; None means the one in the history.
        total_steps: that the run will have: how much attention should have moved depends on it. None means the number
            in the history; less is foreseen where nobody knows.
        thresholds: see `Thresholds`; None means the defaults, which for a short run ask for fewer steps.
        risk_model: see `RiskModel`; None means the one that was tuned on all tasks of the benchmark.

    Raises:
        ConfigurationError: `history` is none, `loss` has another length, or `total_steps` is no number of steps.
    """
    if not isinstance(history, AttentionHistory):
        raise ConfigurationError(
            f"`history` must be an AttentionHistory, got {type(history).__name__}: "
            "take it from a recorder or monitor, or AttentionHistory.load(path)."
        )
    require_int("total_steps", total_steps, minimum=1, maximum=_MOST_STEPS, optional=True)
    _require("thresholds", thresholds, Thresholds)
    _require("risk_model", risk_model, RiskModel)
    total_steps = history.total_steps if total_steps is None else total_steps
    thresholds = thresholds or Thresholds().of_budget(total_steps)
    risk_model = risk_model or default_risk_model()
    if loss is not None:
        history = dataclasses.replace(history.without_memos(), loss=_as_loss(loss, len(history)))
    evidence = Evidence(history)
    if len(evidence) == 0:
        return Diagnosis(RunStatus.UNDETERMINED, (), -1)
    outlook = Outlook(evidence.history, risk_model, total_steps)
    findings = _findings(evidence, outlook, thresholds)
    status = _status(findings, outlook, thresholds)
    return Diagnosis(status, tuple(findings), int(evidence.steps[-1]), _risk(findings, outlook, thresholds))


def _findings(evidence: Evidence, outlook: Outlook, thresholds: Thresholds) -> list[Finding]:
    """What holds now, most severe first."""
    enough = _is_enough(evidence.steps, thresholds)
    symptoms = [symptom for symptom in (rule(evidence, thresholds) for rule in RULES) if symptom]
    findings = [
        _finding(symptom, is_note=_is_note(symptom, outlook, thresholds))
        for symptom in symptoms
        if enough or symptom.kind in _AT_ONCE
    ]
    if enough and all(finding.is_note for finding in findings) and not outlook.is_waking:
        since = outlook.since_when_high(thresholds.patience, lambda steps: _is_enough(steps, thresholds))
        findings += [] if since is None else [_unpromising(outlook, since)]
    return sorted(findings, key=lambda finding: (finding.is_note, -finding.severity))


def _finding(symptom: Symptom, *, is_note: bool) -> Finding:
    severity, words = (0.0, NOTES[symptom.kind]) if is_note else (symptom.severity, REMEDIES[symptom.kind])
    message = f"{symptom.what}. {words}"
    return Finding(symptom.kind, symptom.sites, symptom.step, severity, message, symptom.evidence, is_note)


def _is_note(symptom: Symptom, outlook: Outlook, thresholds: Thresholds) -> bool:
    """Whether it says nothing about the run as a whole.

    Neither does attention that is uniform, as some layers of sound runs stay near uniform, where the run is no worse
    than sound ones are when as much of it is over, its attention is waking, or nobody knows how far it has come.
    """
    if symptom.kind in _ANYWHERE:
        return False
    if symptom.kind is FindingKind.FROZEN_ATTENTION or symptom.share < thresholds.widespread:
        return True
    is_uniform = symptom.kind is FindingKind.UNIFORM_ATTENTION
    is_no_worse = outlook.begins_late or outlook.is_waking or (outlook.is_known and outlook.is_low)
    return is_uniform and is_no_worse


def _status(findings: Sequence[Finding], outlook: Outlook, thresholds: Thresholds) -> RunStatus:
    decisive = {finding.kind for finding in findings if not finding.is_note}
    if decisive:
        return RunStatus.UNSTABLE if decisive & _UNSTABLE else RunStatus.NOT_CONVERGING
    if not _is_enough(outlook.history.steps, thresholds) or math.isnan(outlook.risk):
        return RunStatus.UNDETERMINED
    return RunStatus.AT_RISK if outlook.is_worth_watching else RunStatus.HEALTHY


def _risk(findings: Sequence[Finding], outlook: Outlook, thresholds: Thresholds) -> float:
    """That of the outlook, or of the worst finding; of a run that is flagged at least that from which runs are flagged.

    Nan before there is evidence.
    """
    risks = [finding.severity for finding in findings if not finding.is_note]
    if risks and np.isfinite(outlook.model.flag_at):
        risks.append(outlook.model.flag_at)
    if _is_enough(outlook.history.steps, thresholds) and not math.isnan(outlook.risk):
        risks.append(outlook.risk)
    return max(risks, default=math.nan)


def _is_enough(steps: np.ndarray, thresholds: Thresholds) -> bool:
    """Whether more can be claimed, of a run that was observed at these steps, than what is known at once."""
    return len(steps) >= thresholds.min_observations and num_steps(steps) >= thresholds.min_steps


def _require(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"`{name}` must be {kind.__name__}(...) or None, got {value!r}.")


def _as_loss(loss: Sequence[float], number: int) -> np.ndarray:
    try:
        values = torch.as_tensor(loss).detach().double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is None or values.shape != (number,):
        got = type(loss).__name__ if values is None else f"shape {values.shape}"
        raise ConfigurationError(f"`loss` must have one number for each of the {number} observed steps, got {got}.")
    return values


def _unpromising(outlook: Outlook, since: int) -> Finding:
    """No rule says why, but the run as a whole is more like runs that failed than like sound ones."""
    reasons = outlook.reasons
    what = ", ".join(list(reasons)[:3]) or "nothing speaks for it"
    message = f"Of runs like this one about {outlook.risk:.0%} fail: {what}. {REMEDIES[FindingKind.UNPROMISING]}"
    numbers = zip((signal.name for signal in SIGNALS), numbers_of(outlook.history).tolist(), strict=True)
    evidence = {name: number for name, number in numbers if np.isfinite(number)}
    return Finding(FindingKind.UNPROMISING, (), since, outlook.risk, message, evidence)
