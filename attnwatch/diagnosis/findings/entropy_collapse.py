"""Attention that collapses to single keys."""

from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, latest, register
from attnwatch.recorder import Values
from attnwatch.utils.reductions import nan_mean


@register
@dataclass(frozen=True)
class EntropyCollapse(FindingRule):
    """Nearly every head of a layer attends to a single key; attention sinks are excluded.

    A saturated softmax lets hardly any gradient through. Usual causes: those of `exploding_logits`, as logits explode
    before the softmax saturates. A head with a sink is judged by its other weights.
    """

    name = "entropy_collapse"
    status = RunStatus.UNSTABLE
    remedy = (
        "Gradients hardly reach queries and keys from there: lower the learning rate, lengthen the warm-up, or "
        "normalize queries and keys (QK-norm)."
    )
    note = "Healthy runs have such layers too; by themselves they are no fault."

    enter: float = 0.01
    """Normalized entropy below which a head has collapsed. Sharp but healthy heads (previous token, induction) measure
    0.03 and more."""
    leave: float = 0.02
    """Normalized entropy from which on a head has not collapsed."""
    sink_mass: float = 0.5
    """Weight on the first key above which a head has a sink."""
    share: float = 0.9
    """Share of a site's heads that must have collapsed."""

    def look(self, evidence: Evidence) -> Symptom | None:
        found = evidence.flags(
            self._share_below(evidence, self.enter) >= self.share, self._share_below(evidence, self.leave) < self.share
        )
        if not found.now.any():
            return None
        entropy = evidence.reduced(("beside sinks", self.sink_mass), lambda values: nan_mean(self._entropy(values)))
        now = float(nan_mean(latest(entropy)[found.now]))
        what = f"nearly every head attends to a single key (normalized entropy {now:.4f})"
        severity = 0.5 + 0.4 * np.mean(found.now)
        return evidence.symptom(found, what, severity=severity, numbers={"normalized_entropy": now})

    def _share_below(self, evidence: Evidence, threshold: float) -> np.ndarray:
        """Return the share of the observed heads whose entropy is below a threshold, [observations, sites]."""

        def share(values: Values) -> np.ndarray:
            entropy = self._entropy(values)
            is_known = np.isfinite(entropy)
            number = is_known.sum(-1)
            below = (is_known & (entropy < threshold)).sum(-1)
            return np.where(number > 0, below / np.maximum(number, 1), np.nan)

        return evidence.reduced(("share of sharp heads", threshold, self.sink_mass), share)

    def _entropy(self, values: Values) -> np.ndarray:
        """Return the normalized entropy of each head, of the weights beside the sink if it has one."""
        beside_sink = values["entropy_without_sink"] / np.maximum(values["max_entropy"], 1e-6)
        return np.where(values["sink_mass"] > self.sink_mass, beside_sink, values["normalized_entropy"])
