"""Attention that stays uniform."""

from dataclasses import dataclass, replace

import numpy as np

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, RunStatus, Symptom, earliest, latest, register
from attnwatch.utils.reductions import nan_mean

# About as long as the warm-up of a long run.
_MAX_STEPS = 2000


@register
@dataclass(frozen=True)
class UniformAttention(FindingRule):
    """Attention stays uniform: queries and keys do not learn.

    Usual causes: queries and keys get no gradient or are not in the optimizer, the learning rate is far too low,
    weights decay to zero, or labels do not match their inputs. A model can be good enough without attention, and
    some layers of healthy runs stay near uniform: the finding is a note while the run's risk is that of healthy runs.
    """

    name = "uniform_attention"
    status = RunStatus.NOT_CONVERGING
    remedy = (
        "Queries and keys are not learning, whatever the loss does: check that their projections are in the optimizer "
        "and get gradients, then learning rate, weight decay, attention scale and mask."
    )
    note = "Healthy runs have such layers too, especially early on; by themselves they are no fault."

    enter: float = 0.97
    """Normalized entropy, mean over the heads of a site, above which it is uniform. Causal attention with logits of
    standard deviation s has 1 - s²/(2 log n) to first order: 0.97 at 128 visible keys is s = 0.5."""
    leave: float = 0.95
    """Normalized entropy below which a site is not uniform."""
    steps: float = 100
    """Steps for which a site must have been uniform; by default a fifth of the budget, 2,000 at most."""
    growth: float = 1.5
    """Factor by which 1 - normalized entropy grows within `steps` steps if queries and keys learn, only slowly."""
    min_growth: float = 1e-3
    """Amount by which it must grow as well."""
    spread_growth: float = 1.25
    """Factor by which the spread of the logits grows, since it was lowest, if queries and keys learn. In runs whose
    queries and keys do not learn it stays within 1.2 times that."""

    def of_budget(self, total_steps: int | None) -> "UniformAttention":
        if total_steps is None or total_steps < self.steps:
            return self
        return replace(self, steps=min(total_steps / 5, _MAX_STEPS))

    def look(self, evidence: Evidence) -> Symptom | None:
        entropy = evidence.mean("normalized_entropy")
        learns = self._learns(evidence, entropy)
        found = evidence.flags((entropy > self.enter) & ~learns, (entropy < self.leave) | learns)
        found = found.that_lasted(evidence.steps, self.steps)
        if not found.now.any():
            return None
        now = {
            name: float(nan_mean(latest(evidence.mean(name))[found.now]))
            for name in ("normalized_entropy", "content_sensitivity")
        }
        numbers = {name: value for name, value in now.items() if np.isfinite(value)}
        at_start = nan_mean(earliest(entropy, 1).T)
        numbers["normalized_entropy_at_start"] = float(nan_mean(at_start[found.now]))
        risk = evidence.risk
        is_note = risk.starts_late or risk.is_starting_to_learn or (risk.is_calibrated and risk.is_low)
        what = f"attention stays uniform (normalized entropy {now['normalized_entropy']:.3f})"
        severity = 0.4 + 0.5 * np.mean(found.now)
        return evidence.symptom(found, what, severity=severity, numbers=numbers, is_note=is_note)

    def _learns(self, evidence: Evidence, entropy: np.ndarray) -> np.ndarray:
        """Return where entropy is high, but queries and keys learn: bool [observations, sites].

        Entropy has begun to fall within the last `steps` steps, or the spread of the logits has grown since it was
        lowest. Entropy falls with the square of the spread, so that the spread shows first. Layers whose logits shrink
        before they grow, as in vision transformers, are compared with their lowest point.
        """
        deficit: np.ndarray = 1 - _smooth(entropy)
        then = np.searchsorted(evidence.steps, evidence.steps - self.steps, side="right") - 1
        before = deficit[np.maximum(then, 0)]
        falls = deficit > np.maximum(self.growth * before, before + self.min_growth)
        spread = _smooth(evidence.mean("logit_std"))
        return falls | (spread > self.spread_growth * np.fmin.accumulate(spread, axis=0))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the mean of the last three observations at each of them."""
    padded = np.concatenate([values[:1], values[:1], values])
    return nan_mean(np.lib.stride_tricks.sliding_window_view(padded, 3, axis=0))
