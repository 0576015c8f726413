"""The rules: each reads the evidence and returns what holds at its end, or None."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attnwatch.diagnosis.evidence import Evidence
from attnwatch.diagnosis.hysteresis import Flags, flags
from attnwatch.diagnosis.standstill import changes, halves
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import FindingKind
from attnwatch.utils.reductions import nan_max, nan_mean, nan_min


@dataclass(frozen=True)
class Symptom:
    """What a rule has found; `diagnose` decides whether it bears on the run's status.

    Attributes:
        kind: of the finding.
        sites: where.
        step: global step since which it holds at some site.
        share: of the sites that were observed.
        severity: of the finding, where it bears on the status.
        what: the first half of the message: what was seen, with its numbers.
        evidence: the numbers by name.
    """

    kind: FindingKind
    sites: tuple[str, ...]
    step: int
    share: float
    severity: float
    what: str
    evidence: Mapping[str, float]


Rule = Callable[[Evidence, Thresholds], Symptom | None]


def non_finite(evidence: Evidence, thresholds: Thresholds) -> Symptom | None:
    """Nan or infinite logits, at once."""
    share = evidence.largest("nonfinite")
    found = flags(share > 0, share == 0, patience=1)
    if not found.now.any():
        return None
    worst = float(nan_max(_latest(share)))
    what = f"{worst:.0%} of the query rows have logits that are nan or infinite"
    return _symptom(FindingKind.NON_FINITE, evidence, found, 1.0, what, {"nonfinite": worst})


def blind_attention(evidence: Evidence, thresholds: Thresholds) -> Symptom | None:
    """Every row of every head sees one key only, although there are more."""
    sees_one = evidence.sees_one_key
    found = flags(sees_one == 1, sees_one == 0, patience=thresholds.patience)
    if not found.now.any():
        return None
    severity = 0.5 + 0.4 * np.mean(found.now)
    what = "every query row sees a single key"
    return _symptom(FindingKind.BLIND_ATTENTION, evidence, found, severity, what, {})


def exploding_logits(evidence: Evidence, thresholds: Thresholds) -> Symptom | None:
    """Attention logits far above what stable runs have, and far above where they began."""
    largest = evidence.largest("max_logit")
    at_start = _over_observations(nan_min, _first(largest, 3))  # a run may explode between two observations
    found = flags(
        (largest > thresholds.logit_enter) & (largest > thresholds.logit_growth * np.abs(at_start)),
        largest < thresholds.logit_leave,
        patience=thresholds.patience,
    )
    if not found.now.any():
        return None
    worst = float(nan_max(_latest(largest)[found.now]))
    severity = 0.6 + 0.2 * np.log10(max(worst / max(thresholds.logit_enter, 1.0), 1.0))
    numbers = {"max_logit": worst, "max_logit_at_start": float(nan_max(at_start[found.now]))}
    what = f"attention logits have grown to {worst:.3g}"
    return _symptom(FindingKind.EXPLODING_LOGITS, evidence, found, min(severity, 0.95), what, numbers)


def entropy_collapse(evidence: Evidence, thresholds: Thresholds) -> Symptom | None:
    """Nearly all heads of a site look at a single key. A sink is not a collapse: its other weights are judged."""
    # Comparisons with nan, where nothing was observed, are false.
    found = flags(
        evidence.share_of_sharp_heads(thresholds.collapse_enter, thresholds) >= thresholds.collapse_share,
        evidence.share_of_sharp_heads(thresholds.collapse_leave, thresholds) < thresholds.collapse_share,
        patience=thresholds.patience,
    )
    if not found.now.any():
        return None
    now = float(nan_mean(_latest(evidence.entropy_beside_sinks(thresholds))[found.now]))
    severity = 0.5 + 0.4 * np.mean(found.now)
    what = f"nearly every head looks at a single key (normalized entropy {now:.4f})"
    return _symptom(FindingKind.ENTROPY_COLLAPSE, evidence, found, severity, what, {"normalized_entropy": now})


def uniform_attention(evidence: Evidence, thresholds: Thresholds) -> Symptom | None:
    """Attention that stays uniform: queries and keys do not learn where to look."""
    entropy = evidence.mean("normalized_entropy")
    departing = _departing(evidence, entropy, thresholds)
    found = flags(
        (entropy > thresholds.uniform_enter) & ~departing,
        (entropy < thresholds.uniform_leave) | departing,
        patience=thresholds.patience,
    )
    found = _that_lasted(found, evidence.steps, thresholds.uniform_steps)
    if not found.now.any():
        return None
    now = {
        name: float(nan_mean(_latest(evidence.mean(name))[found.now]))
        for name in ("normalized_entropy", "content_sensitivity")
    }
    numbers = {name: value for name, value in now.items() if np.isfinite(value)}
    numbers["normalized_entropy_at_start"] = float(nan_mean(_at_start(entropy, 1)[found.now]))
    severity = 0.4 + 0.5 * np.mean(found.now)
    what = f"attention stays uniform (normalized entropy {now['normalized_entropy']:.3f})"
    return _symptom(FindingKind.UNIFORM_ATTENTION, evidence, found, severity, what, numbers)


def frozen_attention(evidence: Evidence, thresholds: Thresholds) -> Symptom | None:
    """Attention that no longer changes although the loss still falls.

    Some site must show it clearly. It then holds at all sites at which nothing speaks against it: where the noise of
    the batches is larger than in the clearest site, or attention is uniform, or its logits are huge.
    """
    window = thresholds.frozen_window
    if len(evidence) < window:
        return None
    falls = _falls(evidence.history.loss, window, thresholds)[:, None]
    if not falls.any():
        return None
    first = int(falls.argmax())  # before, no flag comes up
    seen, falls = changes(evidence, window, first=first), falls[first:]
    clearly, anywhere = (
        flags(
            (seen.chi2 < thresholds.frozen_chi2) & (seen.drift < drift) & falls & ~others,
            (seen.chi2 > 4 * thresholds.frozen_chi2) | (seen.drift > 2 * drift) | others,
            patience=thresholds.patience,
        )
        for drift, others in (
            (thresholds.frozen_drift, _have_other_reasons(evidence, thresholds)[first + window - 1 :]),
            (_NOISY * thresholds.frozen_drift, np.False_),
        )
    )
    if not clearly.now.any():
        return None
    where = clearly.now | anywhere.now
    drift = float(nan_max(_latest(seen.drift)[where]))
    what = f"attention has not changed for {window} observations while the loss fell"
    numbers = {"normalized_entropy_drift": drift}
    # A window's index is that of the observation with which it begins.
    return _symptom(FindingKind.FROZEN_ATTENTION, evidence, clearly, 0.0, what, numbers, where=where, first=first)


RULES: Sequence[Rule] = (
    non_finite,
    blind_attention,
    exploding_logits,
    entropy_collapse,
    uniform_attention,
    frozen_attention,
)
# By how much more the mean over half a window may differ where attention is noisy.
_NOISY = 10.0


def _symptom(
    kind: FindingKind,
    evidence: Evidence,
    found: Flags,
    severity: float,
    what: str,
    numbers: Mapping[str, float],
    *,
    where: np.ndarray | None = None,
    first: int = 0,
) -> Symptom:
    """At the sites where the flag is up, or at `where`: bool [sites]; flags begin with the observation `first`."""
    where = found.now if where is None else where
    sites = tuple(evidence.sites[index] for index in np.flatnonzero(where))
    shown = ", ".join(sites[:3]) + (", …" if len(sites) > 3 else "")
    what = f"{what} at {len(sites)} of {len(where)} sites ({shown})"
    step = int(evidence.steps[first + found.since])
    return Symptom(kind, sites, step, len(sites) / len(where), float(severity), what, numbers)


def _that_lasted(found: Flags, steps: np.ndarray, number: float) -> Flags:
    """Only those flags that are up since so many steps."""
    lasted = steps[:, None] - steps[np.maximum(found.begin, 0)] >= number
    return Flags(found.is_up & lasted, found.begin)


def _have_other_reasons(evidence: Evidence, thresholds: Thresholds) -> np.ndarray:
    """Bool [observations, sites]: attention that is uniform, or can't change as its logits are huge."""
    uniform = evidence.mean("normalized_entropy") > thresholds.uniform_leave
    return uniform | (evidence.largest("max_logit") > thresholds.logit_leave)


def _falls(loss: np.ndarray, window: int, thresholds: Thresholds) -> np.ndarray:
    """Bool [windows]: the loss falls within it, clearly; False where it was not always recorded."""
    ends = np.arange(window, len(loss) + 1)
    first, second, error = halves(loss, ends, window)
    missing = np.append(0, np.cumsum(~np.isfinite(loss)))
    falls = (second - first < -thresholds.frozen_loss_drop * np.abs(first)) & (second - first < -2 * error)
    return falls & (missing[ends] == missing[ends - window])


def _departing(evidence: Evidence, entropy: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Bool [observations, sites]: entropy is high, but queries and keys are learning.

    It has begun to fall within the last `uniform_steps` steps, or the spread of the logits has grown since it was
    lowest: entropy falls with its square, so that the spread shows first. Layers whose logits shrink before they grow,
    as in vision transformers, are compared with their lowest point.
    """
    deficit = 1 - _smooth(entropy)
    then = np.searchsorted(evidence.steps, evidence.steps - thresholds.uniform_steps, side="right") - 1
    before = deficit[np.maximum(then, 0)]
    falls = deficit > np.maximum(thresholds.uniform_growth * before, before + thresholds.uniform_growth_floor)
    spread = _smooth(evidence.mean("logit_std"))
    return falls | (spread > thresholds.uniform_spread_growth * np.fmin.accumulate(spread, axis=0))


def _over_observations(reduce: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    return reduce(np.moveaxis(values, 0, -1))


def _at_start(values: np.ndarray, number: int) -> np.ndarray:
    """Mean of the first `number` values that were observed, along the first axis."""
    return _over_observations(nan_mean, _first(values, number))


def _first(values: np.ndarray, number: int) -> np.ndarray:
    """Nan but for the first `number` values that were observed, along the first axis."""
    is_first = np.cumsum(~np.isnan(values), axis=0) <= number
    return np.where(is_first, values, np.nan)


def _latest(values: np.ndarray) -> np.ndarray:
    """The last value that was observed, along the first axis: not every site is called in every step."""
    last = len(values) - 1 - (~np.isnan(values))[::-1].argmax(0)
    return np.take_along_axis(values, last[None], axis=0)[0]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the last three observations at each of them."""
    padded = np.concatenate([values[:1], values[:1], values])
    return nan_mean(np.lib.stride_tricks.sliding_window_view(padded, 3, axis=0))
