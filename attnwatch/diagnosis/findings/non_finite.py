"""Logits that are nan or infinite."""

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, latest, register
from attnwatch.utils.reductions import nan_max


@register
class NonFinite(FindingRule):
    """Attention logits are nan or infinite.

    Usual causes: float16 without loss scaling, or training that has already diverged.
    """

    name = "non_finite"
    status = RunStatus.UNSTABLE
    counts_anywhere = True
    known_at_once = True
    remedy = (
        "Go back to a checkpoint before this step, lower the learning rate, clip gradients, and use bfloat16 "
        "instead of float16."
    )

    def look(self, evidence: Evidence) -> Symptom | None:
        share = evidence.largest("nonfinite")
        found = evidence.flags(share > 0, share == 0, patience=1)
        if not found.now.any():
            return None
        worst = float(nan_max(latest(share)))
        what = f"{worst:.0%} of the query rows have logits that are nan or infinite"
        return evidence.symptom(found, what, severity=1.0, numbers={"nonfinite": worst})
