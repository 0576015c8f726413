"""Runs that resemble failed ones, without a finding that says why."""

import numpy as np

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, register
from attnwatch.diagnosis.signals import SIGNALS, numbers_of
from attnwatch.utils.messages import share_in_words


@register
class Unpromising(FindingRule):
    """The run resembles failed runs more than healthy ones, but no rule says why.

    The risk has been high for a while, that is above the risk model's `flag_at`; the message says which signals make it
    so. Usual causes: a rate that is too low, fine-tuning in which attention is static, or a run that starts to diverge.
    """

    name = "unpromising"
    status = RunStatus.NOT_CONVERGING
    is_fallback = True
    remedy = (
        "Check the learning rate (too low, too high, not warmed up), what the optimizer is given, and whether labels "
        "and masks match their inputs; then compare with a run that is known to be healthy."
    )

    def look(self, evidence: Evidence) -> Symptom | None:
        risk = evidence.risk
        since = None if risk.is_starting_to_learn else risk.since_when_high(evidence.thresholds)
        if since is None:
            return None
        reasons = "; ".join(list(risk.reasons)[:3]) or "all signals lie within the ranges of sound runs"
        numbers = zip((signal.name for signal in SIGNALS), numbers_of(evidence.history).tolist(), strict=True)
        return Symptom(
            sites=(),
            step=since,
            share=1.0,
            severity=risk.value,
            what=f"{share_in_words(risk.value)} of the runs like this one failed: {reasons}",
            numbers={name: number for name, number in numbers if np.isfinite(number)},
        )
