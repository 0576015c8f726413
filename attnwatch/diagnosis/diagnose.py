"""From a history to a verdict."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from attnwatch.arguments import require_int
from attnwatch.diagnosis.remedies import REMEDIES
from attnwatch.diagnosis.risk import RiskModel, default_risk_model
from attnwatch.diagnosis.rules import RULES
from attnwatch.diagnosis.signals import SIGNALS, signals_of
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Diagnosis, Finding, FindingKind, RunStatus
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory

_UNSTABLE = {FindingKind.NON_FINITE, FindingKind.EXPLODING_LOGITS, FindingKind.ENTROPY_COLLAPSE}
# Unstable wherever they are, not only where they are widespread.
_ANYWHERE = {FindingKind.NON_FINITE, FindingKind.EXPLODING_LOGITS}


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
    Before there is evidence the status is UNDETERMINED; only non-finite values are reported at once.

    Args:
        history: what was recorded.
        loss: training loss at `history.steps`; None means the one in the history.
        total_steps: that the run will have: how much attention should have moved depends on it. None where nobody
            knows; less is foreseen then.
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
    require_int("total_steps", total_steps, minimum=1, optional=True)
    thresholds = thresholds or Thresholds().of_budget(total_steps)
    risk_model = risk_model or default_risk_model()
    if loss is not None:
        loss = np.asarray(loss, dtype=np.float64)
        if loss.shape != history.steps.shape:
            raise ConfigurationError(
                f"`loss` must have one value for each of the {len(history)} observed steps, got shape {loss.shape}."
            )
        history = dataclasses.replace(history, loss=loss)
    history = _observed_part(history)
    if len(history) == 0:
        return Diagnosis(RunStatus.UNDETERMINED, (), -1)
    enough = (
        len(history) >= thresholds.min_observations and history.steps[-1] - history.steps[0] >= thresholds.min_steps
    )
    share = None if total_steps is None else min((history.steps[-1] + 1) / total_steps, 1.0)
    risk = risk_model.risk(history, share) if enough else 0.0
    found = [rule(history, thresholds) for rule in RULES]
    findings = [finding for finding in found if finding and (enough or finding.kind is FindingKind.NON_FINITE)]
    status = _status(findings, len(history.sites), thresholds, enough)
    if status is RunStatus.HEALTHY and risk >= risk_model.flag_at:
        findings.append(_unpromising(history, risk_model, share, risk))
        status = RunStatus.NOT_CONVERGING
    findings.sort(key=lambda finding: -finding.severity)
    risk = max([risk, *(finding.severity for finding in findings)])
    return Diagnosis(status, tuple(findings), int(history.steps[-1]), risk)


def _unpromising(history: AttentionHistory, model: RiskModel, share: float | None, risk: float) -> Finding:
    """No rule says why, but the run as a whole is more like runs that failed than like sound ones."""
    reasons = model.contributions(history, share)
    what = ", ".join(list(reasons)[:3]) or "nothing speaks for it"
    message = f"Of runs like this one {risk:.0%} failed: {what}. {REMEDIES[FindingKind.UNPROMISING]}"
    evidence = dict(zip((signal.name for signal in SIGNALS), signals_of(history).tolist(), strict=True))
    return Finding(FindingKind.UNPROMISING, (), int(history.steps[-1]), risk, message, evidence)


def _observed_part(history: AttentionHistory) -> AttentionHistory:
    """Without sites and steps at which nothing was observed."""
    observed = np.isfinite(history["nonfinite"]).any(2)
    steps, sites = observed.any(1), observed.any(0)
    return dataclasses.replace(
        history,
        steps=history.steps[steps],
        sites=tuple(np.array(history.sites, dtype=object)[sites]),
        values={name: values[steps][:, sites] for name, values in history.values.items()},
        loss=history.loss[steps],
    )


def _status(findings: Sequence[Finding], num_sites: int, thresholds: Thresholds, enough: bool) -> RunStatus:
    decisive = {
        finding.kind
        for finding in findings
        if finding.kind in _ANYWHERE or len(finding.sites) >= thresholds.widespread * num_sites
    }
    if decisive & _UNSTABLE:
        return RunStatus.UNSTABLE
    if not enough:
        return RunStatus.UNDETERMINED
    if FindingKind.UNIFORM_ATTENTION in decisive:
        return RunStatus.NOT_CONVERGING
    return RunStatus.HEALTHY
