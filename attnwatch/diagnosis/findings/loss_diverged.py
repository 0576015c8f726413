"""Losses that have risen far above their start, where nothing but the loss is known."""

from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.course import MIN_OBSERVATIONS
from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, register


@register
@dataclass(frozen=True)
class LossDiverged(FindingRule):
    """The loss has risen above its start and stays there. Looked for only where no attention was recorded.

    The last tenth of the losses, at least three, all lie above the median of as many at the start, by at least
    `enter` of its size.
    """

    name = "loss_diverged"
    status = RunStatus.UNSTABLE
    judges = "loss"
    remedy = "Go back to a checkpoint before the rise, and lower the learning rate or warm it up for longer."
    enter: float = 0.1
    """Rise above the start from which on a loss counts as diverged, as a share of the start."""

    def look(self, evidence: Evidence) -> Symptom | None:
        is_known = np.isfinite(evidence.history.loss)
        loss, steps = evidence.history.loss[is_known], evidence.steps[is_known]
        if len(loss) < MIN_OBSERVATIONS:
            return None
        number = max(3, len(loss) // 10)
        start, lowest_now = float(np.median(loss[:number])), float(loss[-number:].min())
        limit = start + self.enter * abs(start)
        if lowest_now <= limit:
            return None
        below = np.flatnonzero(loss <= limit)
        since = int(steps[below[-1] + 1]) if len(below) else int(steps[0])
        now = float(np.median(loss[-number:]))
        what = f"the loss has risen from {start:.3g} to {now:.3g} and stays above its start"
        return Symptom((), since, share=1.0, severity=0.9, what=what, numbers={"start": start, "now": now})
