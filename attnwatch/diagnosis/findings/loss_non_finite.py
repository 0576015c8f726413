"""Losses that are nan or infinite."""

import numpy as np

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, register

_PATIENCE = 2  # a batch without labels has a mean loss of nan


@register
class LossNonFinite(FindingRule):
    """The loss is nan or infinite.

    If attention was recorded, nan means that the loss of an observation is unknown, so only infinite losses count.
    Usual causes: float16 without loss scaling, a learning rate that is too high, or a faulty batch.
    """

    name = "loss_non_finite"
    status = RunStatus.UNSTABLE
    known_at_once = True
    judges = "both"
    remedy = (
        "Go back to a checkpoint before this step, lower the learning rate, clip gradients, and use bfloat16 "
        "instead of float16."
    )

    def look(self, evidence: Evidence) -> Symptom | None:
        loss = evidence.history.loss[:, None]
        is_finite = np.isfinite(loss) if evidence.has_loss_alone else ~np.isinf(loss)
        found = evidence.flags(~is_finite, is_finite, patience=_PATIENCE)
        if not found.now.any():
            return None
        step = int(evidence.steps[found.since])
        what = f"the loss is {evidence.history.loss[-1]} at the last observations"
        return Symptom((), step, share=1.0, severity=1.0, what=what)
