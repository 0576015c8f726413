"""The rules: each reads a history and returns the finding that holds at its end, or None."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attnwatch.diagnosis.hysteresis import onset
from attnwatch.diagnosis.remedies import REMEDIES
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Finding, FindingKind
from attnwatch.recorder import AttentionHistory
from attnwatch.reductions import nan_max, nan_mean, nan_min

Rule = Callable[[AttentionHistory, Thresholds], Finding | None]


def non_finite(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Nan or infinite logits, at once."""
    share = nan_max(history["nonfinite"])
    since = onset(share > 0, share == 0, patience=1)
    if not (since >= 0).any():
        return None
    worst = float(nan_max(_latest(share)))
    what = f"{worst:.0%} of the query rows have logits that are nan or infinite"
    return _finding(FindingKind.NON_FINITE, history, since, 1.0, what, {"nonfinite": worst})


def exploding_logits(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Attention logits far above what stable runs have, and far above where they began."""
    largest = nan_max(history["max_logit"])
    at_start = _over_observations(nan_min, _first(largest, 3))  # a run may explode between two observations
    since = onset(
        (largest > thresholds.logit_enter) & (largest > thresholds.logit_growth * np.abs(at_start)),
        largest < thresholds.logit_leave,
        patience=thresholds.patience,
    )
    if not (since >= 0).any():
        return None
    worst = float(nan_max(_latest(largest)[since >= 0]))
    severity = 0.6 + 0.2 * np.log10(max(worst / max(thresholds.logit_enter, 1.0), 1.0))
    evidence = {"max_logit": worst, "max_logit_at_start": float(nan_max(at_start[since >= 0]))}
    what = f"attention logits have grown to {worst:.3g}"
    return _finding(FindingKind.EXPLODING_LOGITS, history, since, min(severity, 0.95), what, evidence)


def entropy_collapse(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Nearly all heads of a site look at a single key. A sink is not a collapse: its other weights are judged."""
    entropy = _entropy_beside_sink(history, thresholds)
    observed = np.isfinite(entropy).any(2)
    since = onset(
        observed & (_share_below(entropy, thresholds.collapse_enter) >= thresholds.collapse_share),
        observed & (_share_below(entropy, thresholds.collapse_leave) < thresholds.collapse_share),
        patience=thresholds.patience,
    )
    if not (since >= 0).any():
        return None
    now = float(nan_mean(_latest(entropy)[since >= 0].reshape(-1)))
    severity = 0.5 + 0.4 * np.mean(since >= 0)
    what = f"nearly every head looks at a single key (normalized entropy {now:.4f})"
    return _finding(FindingKind.ENTROPY_COLLAPSE, history, since, severity, what, {"normalized_entropy": now})


def uniform_attention(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Attention that stays uniform: queries and keys do not learn where to look."""
    entropy = nan_mean(history["normalized_entropy"])
    departing = _departing(history, entropy, thresholds)
    since = onset(
        (entropy > thresholds.uniform_enter) & ~departing,
        (entropy < thresholds.uniform_leave) | departing,
        patience=thresholds.patience,
    )
    since = np.where(history.steps[-1] - history.steps[since] < thresholds.uniform_steps, -1, since)
    if not (since >= 0).any():
        return None
    now = {
        name: float(nan_mean(_latest(history[name])[since >= 0].reshape(-1)))
        for name in ("normalized_entropy", "content_sensitivity")
    }
    evidence = {name: value for name, value in now.items() if np.isfinite(value)}
    evidence["normalized_entropy_at_start"] = float(nan_mean(_at_start(entropy, 1)[since >= 0]))
    severity = 0.4 + 0.5 * np.mean(since >= 0)
    what = f"attention stays uniform (normalized entropy {now['normalized_entropy']:.3f})"
    return _finding(FindingKind.UNIFORM_ATTENTION, history, since, severity, what, evidence)


def frozen_attention(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Attention that no longer changes although the loss still falls.

    Uniform sites are left to their own rule, and those with huge logits, which can not change, to theirs.
    """
    window = thresholds.frozen_window
    ends = np.arange(max(window, len(history) - _MOST_FROZEN_WINDOWS), len(history) + 1)
    if not len(ends):
        return None
    stands_still, moves, drift = _changes(history, ends, thresholds)
    since = onset(stands_still, moves, patience=thresholds.patience)
    if not (since >= 0).any():
        return None
    severity = 0.2 + 0.2 * np.mean(since >= 0)
    what = f"attention has not changed for {window} observations while the loss fell"
    evidence = {"normalized_entropy_drift": float(nan_max(_latest(drift)[since >= 0]))}
    since = np.where(since >= 0, since + ends[0] - window, -1)
    return _finding(FindingKind.FROZEN_ATTENTION, history, since, severity, what, evidence)


def _changes(
    history: AttentionHistory, ends: np.ndarray, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each window and site: stands still while the loss falls; moves; by how much its entropy drifts."""
    entropy = history["normalized_entropy"]
    first, second, error = _halves(entropy, ends, thresholds.frozen_window)
    drift = second - first
    chi2 = nan_mean(np.square(drift / np.maximum(error, 1e-7)))
    largest = nan_max(np.abs(drift))
    other = nan_mean(entropy[ends - 1]) > thresholds.uniform_leave
    other |= nan_max(history["max_logit"][ends - 1]) > thresholds.logit_leave
    still = (chi2 < thresholds.frozen_chi2) & (largest < thresholds.frozen_drift)
    moves = (chi2 > 4 * thresholds.frozen_chi2) | (largest > 2 * thresholds.frozen_drift)
    falls = _falls(history.loss, ends, thresholds)[:, None]
    return still & ~other & falls, moves | other, largest


def _falls(loss: np.ndarray, ends: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Bool [windows]: the loss falls within it, clearly; False where it was not always recorded."""
    window = thresholds.frozen_window
    first, second, error = _halves(loss, ends, window)
    missing = np.append(0, np.cumsum(~np.isfinite(loss)))
    falls = (second - first < -thresholds.frozen_loss_drop * np.abs(first)) & (second - first < -2 * error)
    return falls & (missing[ends] == missing[ends - window])


# How many of the latest windows the flag of frozen attention is followed through.
_MOST_FROZEN_WINDOWS = 64

RULES: Sequence[Rule] = (non_finite, exploding_logits, entropy_collapse, uniform_attention, frozen_attention)


def _finding(
    kind: FindingKind,
    history: AttentionHistory,
    since: np.ndarray,
    severity: float,
    what: str,
    evidence: Mapping[str, float],
) -> Finding:
    """At the sites where `since`, the index of the first observation, is not negative."""
    sites = tuple(history.sites[index] for index in np.flatnonzero(since >= 0))
    shown = ", ".join(sites[:3]) + (", …" if len(sites) > 3 else "")
    message = f"{what} at {len(sites)} of {len(history.sites)} sites ({shown}). {REMEDIES[kind]}"
    step = int(history.steps[since[since >= 0].min()])
    return Finding(kind, sites, step, float(severity), message, evidence)


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


def _share_below(values: np.ndarray, threshold: float) -> np.ndarray:
    """Share of the observed heads below a threshold."""
    observed = np.isfinite(values)
    return (observed & (values < threshold)).sum(-1) / np.maximum(observed.sum(-1), 1)


def _entropy_beside_sink(history: AttentionHistory, thresholds: Thresholds) -> np.ndarray:
    """Normalized entropy, of the weights beside the sink where a head has one: [observations, sites, heads]."""
    beside_sink = history["entropy_without_sink"] / np.maximum(history["max_entropy"], 1e-6)
    return np.where(history["sink_mass"] > thresholds.sink_mass, beside_sink, history["normalized_entropy"])


def _departing(history: AttentionHistory, entropy: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Bool [observations, sites]: entropy is high, but queries and keys are learning.

    It has begun to fall within the last `uniform_steps` steps, or the spread of the logits has grown since the start:
    entropy falls with its square, so that the spread shows first.
    """
    deficit = 1 - _smooth(entropy)
    then = np.searchsorted(history.steps, history.steps - thresholds.uniform_steps, side="right") - 1
    before = deficit[np.maximum(then, 0)]
    falls = deficit > np.maximum(thresholds.uniform_growth * before, before + thresholds.uniform_growth_floor)
    spread = _smooth(nan_mean(history["logit_std"]))
    return falls | (spread > thresholds.uniform_growth * _at_start(spread, 3))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the last three observations at each of them."""
    padded = np.concatenate([values[:1], values[:1], values])
    return nan_mean(np.lib.stride_tricks.sliding_window_view(padded, 3, axis=0))


def _halves(values: np.ndarray, ends: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the windows that end before `ends`: means of both halves, and the standard error of their difference.

    By running sums along the first axis, of the values less their mean, so that nothing is lost where they vary little.
    """
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    centre = _over_observations(nan_mean, values)
    known = np.isfinite(values)
    centred = np.where(known, values - centre, 0.0)
    sums = [np.cumsum(np.concatenate([np.zeros_like(each[:1]), each]), axis=0) for each in (known, centred, centred**2)]
    middle = ends - window // 2
    means, variance = [], 0.0
    for begin, end in ((ends - window, middle), (middle, ends)):
        number, total, squares = (running[end] - running[begin] for running in sums)
        mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
        spread = np.maximum(squares - number * mean**2, 0.0) / np.maximum(number - 1, 1)
        length = (end - begin)[0]
        means.append(mean + centre)
        variance = variance + spread / length
    return means[0], means[1], np.sqrt(variance)
