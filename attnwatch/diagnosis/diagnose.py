"""From a history to a verdict."""

import dataclasses
import itertools
import operator
from collections.abc import Sequence

import numpy as np
import torch

from attnwatch.arguments import require_int
from attnwatch.diagnosis.remedies import REMEDIES
from attnwatch.diagnosis.risk import Outlook, RiskModel, default_risk_model
from attnwatch.diagnosis.rules import RULES
from attnwatch.diagnosis.signals import SIGNALS, signals_of
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Diagnosis, Finding, FindingKind, RunStatus
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory

_UNSTABLE = {FindingKind.NON_FINITE, FindingKind.EXPLODING_LOGITS, FindingKind.ENTROPY_COLLAPSE}
# Unstable wherever they are, not only where they are widespread.
_ANYWHERE = {FindingKind.NON_FINITE, FindingKind.EXPLODING_LOGITS}
# The risk is high from `flag_at` on, and no longer below this share of it; followed back through so many looks.
_LEAVE = 0.9
_MOST_LOOKS = 20


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
    _require("thresholds", thresholds, Thresholds)
    _require("risk_model", risk_model, RiskModel)
    thresholds = thresholds or Thresholds().of_budget(total_steps)
    risk_model = risk_model or default_risk_model()
    if loss is not None:
        history = dataclasses.replace(history, loss=_as_loss(loss, len(history)))
    history = _observed_part(history)
    if len(history) == 0:
        return Diagnosis(RunStatus.UNDETERMINED, (), -1)
    enough = _is_enough(history, thresholds)
    outlook = Outlook(history, risk_model, total_steps)
    risk = outlook.risk if enough else 0.0
    found = [rule(history, thresholds) for rule in RULES]
    findings = [finding for finding in found if finding and (enough or finding.kind is FindingKind.NON_FINITE)]
    findings = [finding for finding in findings if not _is_no_alarm(finding, outlook, thresholds)]
    status = _status(findings, history, thresholds, enough)
    if status is RunStatus.HEALTHY:
        since = _unpromising_since(outlook, thresholds)
        if since is not None:
            findings.append(_unpromising(outlook, since))
            status = RunStatus.NOT_CONVERGING
    findings.sort(key=lambda finding: -finding.severity)
    risk = max([risk, *(finding.severity for finding in findings)])
    return Diagnosis(status, tuple(findings), int(history.steps[-1]), risk)


def _is_enough(history: AttentionHistory, thresholds: Thresholds) -> bool:
    """Whether more can be claimed than that values are not finite."""
    return len(history) >= thresholds.min_observations and history.num_steps >= thresholds.min_steps


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


def _is_no_alarm(finding: Finding, outlook: Outlook, thresholds: Thresholds) -> bool:
    """Attention that is uniform, in a run that is no worse than sound ones are when as much of it is over.

    Neither is it an alarm where nobody knows how far attention has come: some layers of sound runs stay near uniform.
    """
    if finding.kind is not FindingKind.UNIFORM_ATTENTION or not _is_widespread(finding, outlook.history, thresholds):
        return False
    return outlook.begins_late or (outlook.is_known and outlook.risk < _LEAVE * outlook.model.flag_at)


def _is_widespread(finding: Finding, history: AttentionHistory, thresholds: Thresholds) -> bool:
    return len(finding.sites) >= thresholds.widespread * len(history.sites)


def _unpromising_since(outlook: Outlook, thresholds: Thresholds) -> int | None:
    """The step since which the risk is high; None where it is not, or was not `patience` observations ago."""
    looks = []
    while len(looks) < _MOST_LOOKS and len(outlook.history) and _is_enough(outlook.history, thresholds):
        if outlook.risk < _LEAVE * outlook.model.flag_at:
            break
        looks.append(outlook)
        outlook = outlook.before(thresholds.patience)
    is_high = [look.risk >= look.model.flag_at for look in looks]
    if not any(itertools.starmap(operator.and_, itertools.pairwise(is_high))):
        return None
    return int(looks[-1].history.steps[-1])


def _unpromising(outlook: Outlook, since: int) -> Finding:
    """No rule says why, but the run as a whole is more like runs that failed than like sound ones."""
    reasons = outlook.reasons
    what = ", ".join(list(reasons)[:3]) or "nothing speaks for it"
    message = f"Of runs like this one about {outlook.risk:.0%} fail: {what}. {REMEDIES[FindingKind.UNPROMISING]}"
    numbers = zip((signal.name for signal in SIGNALS), signals_of(outlook.history).tolist(), strict=True)
    evidence = {name: number for name, number in numbers if np.isfinite(number)}
    return Finding(FindingKind.UNPROMISING, (), since, outlook.risk, message, evidence)


def _observed_part(history: AttentionHistory) -> AttentionHistory:
    """Without sites and steps at which nothing was observed."""
    observed = (np.isfinite(history["nonfinite"]) | np.isfinite(history["normalized_entropy"])).any(2)
    steps, sites = observed.any(1), observed.any(0)
    if steps.all() and sites.all():
        return history
    return dataclasses.replace(
        history,
        steps=history.steps[steps],
        sites=tuple(np.array(history.sites, dtype=object)[sites]),
        values={name: values[steps][:, sites] for name, values in history.values.items()},
        loss=history.loss[steps],
    )


def _status(findings: Sequence[Finding], history: AttentionHistory, thresholds: Thresholds, enough: bool) -> RunStatus:
    decisive = {
        finding.kind
        for finding in findings
        if finding.kind in _ANYWHERE or _is_widespread(finding, history, thresholds)
    }
    if decisive & _UNSTABLE:
        return RunStatus.UNSTABLE
    if not enough:
        return RunStatus.UNDETERMINED
    if FindingKind.UNIFORM_ATTENTION in decisive:
        return RunStatus.NOT_CONVERGING
    return RunStatus.HEALTHY
