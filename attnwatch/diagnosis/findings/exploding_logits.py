"""Attention logits that explode."""

from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, earliest, latest, register
from attnwatch.utils.reductions import nan_max, nan_min


@register
@dataclass(frozen=True)
class ExplodingLogits(FindingRule):
    """Attention logits are far above those of stable runs, and far above their initial values.

    Usual causes: a learning rate that is too high or not warmed up, or a wrong attention scale.
    """

    name = "exploding_logits"
    status = RunStatus.UNSTABLE
    counts_anywhere = True
    remedy = (
        "Stable runs stay near 100: lower the learning rate, lengthen the warm-up, normalize queries and keys "
        "(QK-norm) or clip them (QK-clip)."
    )

    enter: float = 1000.0
    """Largest attention logit from which on the flag comes up. Runs that capped it at 100 trained well, uncapped ones
    exceeded 1,000 before they became unstable (arXiv 2507.20534)."""
    leave: float = 500.0
    """Largest attention logit below which the flag goes down."""
    growth: float = 3.0
    """Factor by which it must exceed that of the first observations: some pretrained models have large logits."""

    def look(self, evidence: Evidence) -> Symptom | None:
        largest = evidence.largest("max_logit")
        at_start = nan_min(earliest(largest, 3).T)  # a run may explode between two observations
        has_grown = largest > self.growth * np.abs(at_start)
        found = evidence.flags((largest > self.enter) & has_grown, largest < self.leave)
        if not found.now.any():
            return None
        worst = float(nan_max(latest(largest)[found.now]))
        severity = min(0.6 + 0.2 * np.log10(max(worst / max(self.enter, 1.0), 1.0)), 0.95)
        numbers = {"max_logit": worst, "max_logit_at_start": float(nan_max(at_start[found.now]))}
        what = f"attention logits have grown to {worst:.3g}"
        return evidence.symptom(found, what, severity=severity, numbers=numbers)
