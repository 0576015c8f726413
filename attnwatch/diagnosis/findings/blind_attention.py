"""Attention in which every token sees a single key."""

import numpy as np

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, register
from attnwatch.recorder import Values


@register
class BlindAttention(FindingRule):
    """Every token sees a single key although there are more, as under a wrong mask.

    Usual causes: a mask of another shape, True where it should be False, a window of one token, or document ids that
    differ for every token. Print the mask that attention is given, and one batch.
    """

    name = "blind_attention"
    status = RunStatus.NOT_CONVERGING
    known_at_once = True
    remedy = (
        "No token depends on any other there: check the attention mask (its shape, and whether True means visible), "
        "the sliding window, and the document ids of packed sequences."
    )
    note = "If these layers are meant to see more, check the attention mask that they are given."

    def look(self, evidence: Evidence) -> Symptom | None:
        sees_one = evidence.reduced("sees one key", _sees_one_key)
        found = evidence.flags(sees_one == 1, sees_one == 0)
        severity = 0.5 + 0.4 * np.mean(found.now)
        return evidence.symptom(found, "every query row sees a single key", severity=severity)


def _sees_one_key(values: Values) -> np.ndarray:
    """Return 1 where every row of every head saw one key only, 0 where it did not, nan where nothing was observed.

    Only where one key is visible are logits known to be finite and their entropy unknown.
    """
    is_known = np.isfinite(values["nonfinite"])
    sees_one = (values["nonfinite"] == 0) & np.isnan(values["normalized_entropy"])
    return np.where(is_known.any(-1), (sees_one | ~is_known).all(-1), np.nan)
