"""Attention that no longer changes."""

from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.findings.base import Evidence, FindingRule, Symptom, latest, register
from attnwatch.diagnosis.hysteresis import Flags
from attnwatch.utils.arguments import require_int
from attnwatch.utils.reductions import nan_max, nan_mean

# Windows that are compared at once: their observations fit into a cache.
_BLOCK = 32


@register
@dataclass(frozen=True)
class FrozenAttention(FindingRule):
    """Attention no longer changes although the loss falls.

    Each window of observations is compared, its first half with its second. At least one site must clearly be still,
    that is, beyond what its noise could hide. The symptom then holds at all sites where nothing contradicts it, even if
    the noise is larger than at the clearest site, attention is uniform, or its logits are huge. The finding was too
    rare in the benchmark to be evaluated.
    """

    name = "frozen_attention"
    notes_have_causes = True
    note = "If these layers are meant to train, check requires_grad, the optimizer's parameters and the learning rate."

    window: int = 20
    """Observations that are compared, the first half with the second half."""
    chi2: float = 1.5
    """Mean squared drift of the heads in units of its standard error, below which they are still; 1 is expected of pure
    noise. The flag goes down at 4 times that."""
    drift: float = 1e-3
    """Drift of normalized entropy below which heads are still. The flag goes down at twice that."""
    noise: float = 10.0
    """Factor by which the drift may be larger at sites that are not clearly still."""
    loss_drop: float = 0.02
    """Share by which the loss must have fallen within the window."""
    max_entropy: float = 0.95
    """Normalized entropy above which a site is not clearly still, as uniform attention has another cause."""
    max_logit: float = 500.0
    """Largest logit above which a site is not clearly still, as a saturated softmax has another cause."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("window", self.window, minimum=2)

    def look(self, evidence: Evidence) -> Symptom | None:
        if len(evidence) < self.window:
            return None
        falls = self._loss_falls(evidence.history.loss)
        if not falls.any():
            return None
        changes = self._changes(evidence, first=int(falls.argmax()))  # before, no flag comes up
        has_other_cause = evidence.mean("normalized_entropy") > self.max_entropy
        has_other_cause |= evidence.largest("max_logit") > self.max_logit
        clearly = self._still(evidence, changes, falls, self.drift, has_other_cause[self.window - 1 :])
        if not clearly.now.any():
            return None
        anywhere = self._still(evidence, changes, falls, self.noise * self.drift, np.zeros(1, dtype=bool))
        where = clearly.now | anywhere.now
        drift = float(nan_max(latest(changes[1])[where]))
        what = f"attention has not changed for {self.window} observations while the loss fell"
        # A flag of the window i begins with the observation i, with which the window begins.
        numbers = {"normalized_entropy_drift": drift}
        return evidence.symptom(clearly, what, severity=0.0, numbers=numbers, where=where)

    def _still(
        self, evidence: Evidence, changes: np.ndarray, falls: np.ndarray, most: float, has_other_cause: np.ndarray
    ) -> Flags:
        """Return the flags of the sites that drift by less than `most`, for each window."""
        chi2, drift = changes
        enter = (chi2 < self.chi2) & (drift < most) & falls[:, None] & ~has_other_cause
        leave = (chi2 > 4 * self.chi2) | (drift > 2 * most) | has_other_cause
        return evidence.flags(enter, leave)

    def _loss_falls(self, loss: np.ndarray) -> np.ndarray:
        """Return in which windows the loss falls clearly, bool [windows]; False where it was not always recorded."""
        ends = np.arange(self.window, len(loss) + 1)
        first, second, error = _halves(loss, ends, self.window)
        missing: np.ndarray = np.append(0, np.cumsum(~np.isfinite(loss)))
        falls = (second - first < -self.loss_drop * np.abs(first)) & (second - first < -2 * error)
        return falls & (missing[ends] == missing[ends - self.window])

    def _changes(self, evidence: Evidence, *, first: int) -> np.ndarray:
        """Return (chi2, drift) of the windows, [2, windows, sites]; nan for those before the window `first`.

        Each window is computed once, however often the run is judged.
        """
        history, window = evidence.history, self.window
        key, begins = ("changes", window), range(first, len(history) - window + 1)
        known = {begin: history.memo(begin + window - 1).get(key) for begin in begins}
        missing = [begin for begin, change in known.items() if change is None]
        while missing:
            begin, number = missing[0], min(_BLOCK, missing[-1] - missing[0] + 1)
            seen = history.at(slice(begin, begin + number + window - 1))["normalized_entropy"]
            for place, change in enumerate(_changes_of(seen, window), start=begin):
                known[place] = history.memo(place + window - 1)[key] = change
            missing = [place for place in missing if place >= begin + number]
        changes = np.moveaxis(np.array(list(known.values())), 1, 0)
        changes = np.pad(changes, ((0, 0), (first, 0), (0, 0)), constant_values=np.nan)
        return np.stack([evidence.of_sites(each) for each in changes])


def _changes_of(entropy: np.ndarray, window: int) -> np.ndarray:
    """Return (chi2, drift) of all windows of [observations, sites, heads]: [windows, 2, sites].

    `chi2` is the squared drift of the heads in units of its standard error, mean over the heads; `drift` the largest
    drift of a head.
    """
    first, second, error = _halves(entropy, np.arange(window, len(entropy) + 1), window)
    drift = second - first
    chi2 = nan_mean(np.square(drift / np.maximum(error, 1e-7)))
    return np.stack([chi2, nan_max(np.abs(drift))], axis=1)


def _halves(values: np.ndarray, ends: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the means of both halves of windows that end before `ends`, and the standard error of their difference.

    Sums run along the first axis, of the values less their mean, so that nothing is lost where they vary little.
    """
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    centre = nan_mean(np.moveaxis(values, 0, -1))
    known = np.isfinite(values)
    centred = np.where(known, values - centre, 0.0)
    sums = [np.cumsum(np.concatenate([np.zeros_like(each[:1]), each]), axis=0) for each in (known, centred, centred**2)]
    middle: np.ndarray = ends - window // 2
    means, variance = [], 0.0
    for begin, end in ((ends - window, middle), (middle, ends)):
        number, total, squares = (running[end] - running[begin] for running in sums)
        mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
        spread = np.maximum(squares - number * mean**2, 0.0) / np.maximum(number - 1, 1)
        means.append(mean + centre)
        variance = variance + spread / (end - begin)[0]
    return means[0], means[1], np.sqrt(variance)
