"""Verdict on a run, from its history."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

from attnwatch.diagnosis.causes.base import CauseRule
from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.evidence import Evidence, Symptom
from attnwatch.diagnosis.findings.base import FindingRule
from attnwatch.diagnosis.kinds import FindingKind, status_of
from attnwatch.diagnosis.risk import RiskModel, default_risk_model
from attnwatch.diagnosis.rules import RuleSet
from attnwatch.diagnosis.status import RunStatus
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Diagnosis, Finding
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.arguments import require_instance, require_int

_MAX_STEPS = 2**53


def diagnose(
    history: AttentionHistory,
    *,
    loss: Sequence[float] | None = None,
    total_steps: int | None = None,
    thresholds: Thresholds | None = None,
    rules: Iterable[FindingRule] | RuleSet = (),
    risk_model: RiskModel | None = None,
    checked: Sequence[Finding] = (),
    ruled_out: Collection[str] = (),
) -> Diagnosis:
    """Judge a run at the last step of its history, while it runs or from disk.

    Findings have patience and hysteresis: they come up after several observations in a row and do not flicker. Before
    there is evidence the status is UNDETERMINED and the risk nan; only values that are not finite, and masks that hide
    all keys but one, are reported sooner. Findings that do not bear on the status are notes.

    Args:
        history: what was recorded.
        loss: training loss at `history.steps`; None means the loss in the history.
        total_steps: steps that the run will have, on which depends how far attention should have moved. None means the
            number in the history; if that is unknown too, less can be foreseen.
        thresholds: see `Thresholds`; None means the defaults, which ask for fewer steps of a short run.
        rules: rules that replace the registered ones of the same name, such as `UniformAttention(enter=0.98)` or
            `FrozenAttention(enabled=False)`. A `RuleSet` remembers, from one call to the next, which rules failed.
        risk_model: see `RiskModel`; None means the one that was tuned on all tasks of the benchmark.
        checked: findings of a `TrainingCheckup`, which count like those of the rules and are their causes.
        ruled_out: names of checks that found nothing, or of causes that you have ruled out: they are not named as
            causes.

    Raises:
        ConfigurationError: an argument is of another type, `loss` has another length, `total_steps` is no number of
            steps, or `ruled_out` has a name that is no check or cause.

    Example:
        >>> import attnwatch
        >>> layer = torch.nn.MultiheadAttention(16, num_heads=2, batch_first=True)
        >>> with attnwatch.AttentionRecorder(layer, every_n_steps=1) as recorder, recorder.step(0):
        ...     tokens = torch.full((1, 8, 16), torch.nan)
        ...     _ = layer(tokens, tokens, tokens, need_weights=False)
        >>> diagnosis = attnwatch.diagnose(recorder.history())
        >>> diagnosis.status.value, diagnosis.findings[0].kind.value
        ('unstable', 'non_finite')
    """
    if not isinstance(history, AttentionHistory):
        raise ConfigurationError(
            f"`history` must be an AttentionHistory, got {type(history).__name__}: "
            "take it from a recorder or monitor, or AttentionHistory.load(path)."
        )
    require_int("total_steps", total_steps, minimum=1, maximum=_MAX_STEPS, optional=True)
    require_instance("thresholds", thresholds, Thresholds)
    require_instance("risk_model", risk_model, RiskModel)
    _require_names(ruled_out)
    rules = rules if isinstance(rules, RuleSet) else RuleSet(rules)
    total_steps = history.total_steps if total_steps is None else total_steps
    if loss is not None:
        history = dataclasses.replace(history.without_memos(), loss=_as_loss(loss, len(history)))
    evidence = Evidence(
        history, thresholds or Thresholds().of_budget(total_steps), risk_model or default_risk_model(), total_steps
    )
    found = _found(evidence, rules, checked)
    findings = _with_causes(found, evidence, rules, checked, ruled_out)
    status = _status(findings, evidence)
    reasons = tuple(evidence.risk.reasons) if status is RunStatus.AT_RISK else ()
    steps = evidence.steps[-1:].tolist() or [finding.step for finding in checked] or [-1]
    return Diagnosis(status, findings, max(steps), _risk(findings, evidence), reasons)


def _found(evidence: Evidence, rules: RuleSet, checked: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return what holds now, most severe first; of the notes, those first that could have decided the status."""
    found = list(checked)
    known = {finding.kind for finding in checked if not finding.is_note}
    for fallback in (False, True) if len(evidence) else ():
        if not fallback or all(finding.is_note for finding in found):
            seen = [_finding(rule, symptom, evidence) for rule, symptom in rules.symptoms(evidence, fallback=fallback)]
            found += [finding for finding in seen if finding.kind not in known]
    return tuple(sorted(found, key=lambda each: (each.is_note, -each.severity, status_of(each.kind.value) is None)))


def _finding(rule: FindingRule, symptom: Symptom, evidence: Evidence) -> Finding:
    is_local = symptom.share < evidence.thresholds.widespread and not rule.counts_anywhere
    is_note = rule.status is None or symptom.is_note or is_local
    severity, advice = (0.0, rule.note) if is_note else (symptom.severity, rule.remedy)
    message = f"{symptom.what}. {advice}"
    kind = FindingKind(rule.name)
    return Finding(
        kind, symptom.sites, symptom.step, severity, message, symptom.numbers, is_note=is_note, advice=advice
    )


def _with_causes(
    findings: Sequence[Finding],
    evidence: Evidence,
    rules: RuleSet,
    checked: Sequence[Finding],
    ruled_out: Collection[str],
) -> tuple[Finding, ...]:
    """Return the findings, with the causes of those that are no facts of a checkup."""

    def is_explained(finding: Finding) -> bool:
        rule = FindingRule.registry.get(finding.kind.value)
        return rule is not None and finding not in checked and (not finding.is_note or rule.notes_have_causes)

    if not any(map(is_explained, findings)):
        return tuple(findings)
    causes = rules.causes.rank(RunCourse(evidence), checked, ruled_out)
    return tuple(dataclasses.replace(each, causes=causes) if is_explained(each) else each for each in findings)


def _require_names(ruled_out: Collection[str]) -> None:
    known = {*(kind.value for kind in FindingKind), *CauseRule.registry}
    unknown = None if isinstance(ruled_out, str) else [name for name in ruled_out if name not in known]
    if unknown is None or unknown:
        raise ConfigurationError(
            f"`ruled_out` must have names of checks or causes, such as ['rate_too_low'], got {unknown or ruled_out!r}; "
            f"there are {', '.join(sorted(known))}."
        )


def _status(findings: Sequence[Finding], evidence: Evidence) -> RunStatus:
    statuses = {status_of(finding.kind.value) for finding in findings if not finding.is_note}
    if statuses:
        return RunStatus.UNSTABLE if RunStatus.UNSTABLE in statuses else RunStatus.NOT_CONVERGING
    if not len(evidence) or not evidence.is_enough or math.isnan(evidence.risk.value):
        return RunStatus.UNDETERMINED
    return RunStatus.AT_RISK if evidence.risk.is_elevated else RunStatus.HEALTHY


def _risk(findings: Sequence[Finding], evidence: Evidence) -> float:
    """Return the estimated risk or that of the worst finding; nan before there is evidence.

    The risk of a run with a finding that bears on the status is at least the one from which on runs are flagged.
    """
    estimate = evidence.risk
    risks = [finding.severity for finding in findings if not finding.is_note]
    if risks and np.isfinite(estimate.model.flag_at):
        risks.append(estimate.model.flag_at)
    if len(evidence) and evidence.is_enough and not math.isnan(estimate.value):
        risks.append(estimate.value)
    return max(risks, default=math.nan)


def _as_loss(loss: Sequence[float], number: int) -> np.ndarray:
    try:
        values = torch.as_tensor(loss).detach().double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is None or values.shape != (number,):
        got = type(loss).__name__ if values is None else f"shape {values.shape}"
        raise ConfigurationError(f"`loss` must have one number for each of the {number} observed steps, got {got}.")
    return values
