"""The rules: each reads a history and returns the finding that holds at its end, or None."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from attnwatch.diagnosis.hysteresis import onset
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.diagnosis.verdict import Finding, FindingKind
from attnwatch.recorder import AttentionHistory

Rule = Callable[[AttentionHistory, Thresholds], Finding | None]


def non_finite(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Nan or infinite logits, at once."""
    share = _over_heads(np.nanmax, history["nonfinite"])
    since = onset(share > 0, share == 0, patience=1)
    flagged = np.flatnonzero(since >= 0)
    if flagged.size == 0:
        return None
    worst = float(np.nanmax(share[-1, flagged]))
    return Finding(
        FindingKind.NON_FINITE,
        _names(history, flagged),
        _first_step(history, since, flagged),
        1.0,
        f"{worst:.0%} of the query rows {_at(history, flagged)} have logits that are nan or infinite. Lower the learning "
        "rate, clip gradients, use bfloat16 instead of float16, and resume from a checkpoint before this step.",
        {"nonfinite": worst},
    )


def exploding_logits(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Attention logits far above what stable runs have, and far above where they began."""
    largest = _over_heads(np.nanmax, history["max_logit"])
    reference = _over_observations(np.nanmedian, largest[:3])
    grown = largest > thresholds.logit_growth * np.abs(reference)
    since = onset(
        (largest > thresholds.logit_enter) & grown, largest < thresholds.logit_leave, patience=thresholds.patience
    )
    flagged = np.flatnonzero(since >= 0)
    if flagged.size == 0:
        return None
    worst = float(np.nanmax(largest[-1, flagged]))
    growth = np.log10(max(worst / thresholds.logit_enter, 1.0))
    return Finding(
        FindingKind.EXPLODING_LOGITS,
        _names(history, flagged),
        _first_step(history, since, flagged),
        float(min(0.6 + 0.2 * growth, 0.95)),
        f"attention logits {_at(history, flagged)} have grown to {worst:.3g} (stable runs stay near 100). Lower the learning "
        "learning rate or lengthen the warm-up, normalize queries and keys (QK-norm), or clip them (QK-clip).",
        {"max_logit": worst, "max_logit_at_start": float(np.nanmax(reference[flagged]))},
    )


def entropy_collapse(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Nearly all heads of a site look at a single key. A sink is not a collapse: its other weights are judged."""
    entropy = _entropy_beside_sink(history, thresholds)
    observed = np.isfinite(entropy).any(2)
    below = _share_of_heads(entropy, lambda e: e < thresholds.collapse_enter)
    near = _share_of_heads(entropy, lambda e: e < thresholds.collapse_leave)
    since = onset(
        observed & (below >= thresholds.collapse_share),
        observed & (near < thresholds.collapse_share),
        patience=thresholds.patience,
    )
    flagged = np.flatnonzero(since >= 0)
    if flagged.size == 0:
        return None
    now = float(np.nanmean(entropy[-1, flagged]))
    return Finding(
        FindingKind.ENTROPY_COLLAPSE,
        _names(history, flagged),
        _first_step(history, since, flagged),
        0.5 + 0.4 * flagged.size / len(history.sites),
        f"the heads {_at(history, flagged)} look at a single key each (normalized entropy {now:.4f}). Gradients hardly "
        "reach queries and keys from there: lower the learning rate, lengthen the warm-up, or use QK-norm.",
        {"normalized_entropy": now},
    )


def uniform_attention(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Attention that stays uniform: queries and keys do not learn where to look."""
    entropy = _over_heads(np.nanmean, history["normalized_entropy"])
    since = onset(entropy > thresholds.uniform_enter, entropy < thresholds.uniform_leave, patience=thresholds.patience)
    long_enough = history.steps[-1] - history.steps[np.maximum(since, 0)] >= thresholds.uniform_steps
    flagged = np.flatnonzero((since >= 0) & long_enough & ~_departing(history, entropy, thresholds))
    if flagged.size == 0:
        return None
    now = float(np.nanmean(entropy[-1, flagged]))
    sensitivity = _over_heads(np.nanmean, history["content_sensitivity"])[-1, flagged]
    evidence = {"normalized_entropy": now, "normalized_entropy_at_start": float(np.nanmean(entropy[0, flagged]))}
    if np.isfinite(sensitivity).any():
        evidence["content_sensitivity"] = float(np.nanmean(sensitivity))
    return Finding(
        FindingKind.UNIFORM_ATTENTION,
        _names(history, flagged),
        _first_step(history, since, flagged),
        0.4 + 0.5 * flagged.size / len(history.sites),
        f"attention {_at(history, flagged)} stays uniform (normalized entropy {now:.3f}) and does not depend on the "
        "content: queries and keys are not learning, whatever the loss does. Check that their projections are in the "
        "optimizer and get gradients, and check learning rate, weight decay, attention scale and mask.",
        evidence,
    )


def frozen_attention(history: AttentionHistory, thresholds: Thresholds) -> Finding | None:
    """Attention that no longer changes although the loss still falls. Uniform sites are left to their own rule."""
    window = slice(-thresholds.frozen_window, None)
    entropy, loss = history["normalized_entropy"][window].astype(np.float64), history.loss[window]
    if len(entropy) < thresholds.frozen_window or not _falls(loss, thresholds.frozen_loss_drop):
        return None
    drift, error = _halves(entropy)
    chi2 = _over_heads(np.nanmean, np.square(drift / np.maximum(error, 1e-7)))
    largest = _over_heads(np.nanmax, np.abs(drift))
    uniform = _over_heads(np.nanmean, entropy[-1]) > thresholds.uniform_leave
    flagged = np.flatnonzero((chi2 < thresholds.frozen_chi2) & (largest < thresholds.frozen_drift) & ~uniform)
    if flagged.size == 0:
        return None
    return Finding(
        FindingKind.FROZEN_ATTENTION,
        _names(history, flagged),
        int(history.steps[window][0]),
        0.2 + 0.2 * flagged.size / len(history.sites),
        f"attention {_at(history, flagged)} has not changed for {thresholds.frozen_window} observations while the loss "
        "fell. If these layers are meant to train, check requires_grad, the optimizer's parameters and learning rate.",
        {"normalized_entropy_drift": float(np.nanmax(largest[flagged]))},
    )


RULES: Sequence[Rule] = (non_finite, exploding_logits, entropy_collapse, uniform_attention, frozen_attention)


def _over_heads(reduce: Callable, values: np.ndarray) -> np.ndarray:
    """A nan-aware reduction over the last axis; nan where all is nan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "All-NaN slice": nan is the answer that is wanted
        return reduce(values, axis=-1)


def _over_observations(reduce: Callable, values: np.ndarray) -> np.ndarray:
    return _over_heads(reduce, np.moveaxis(values, 0, -1))


def _share_of_heads(values: np.ndarray, holds: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    observed = np.isfinite(values)
    return (holds(np.where(observed, values, np.inf))).sum(-1) / np.maximum(observed.sum(-1), 1)


def _entropy_beside_sink(history: AttentionHistory, thresholds: Thresholds) -> np.ndarray:
    """Normalized entropy, of the weights beside the sink where a head has one: [observations, sites, heads]."""
    beside_sink = history["entropy_without_sink"] / np.maximum(history["max_entropy"], 1e-6)
    return np.where(history["sink_mass"] > thresholds.sink_mass, beside_sink, history["normalized_entropy"])


def _departing(history: AttentionHistory, entropy: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Bool [sites]: entropy is still high but has begun to fall within the last `uniform_steps` steps."""
    before = max(np.searchsorted(history.steps, history.steps[-1] - thresholds.uniform_steps, side="right") - 1, 0)
    then = 1 - _over_observations(np.nanmedian, entropy[max(before - 2, 0) : before + 1])
    now = 1 - _over_observations(np.nanmedian, entropy[-3:])
    return now > np.maximum(thresholds.uniform_growth * then, then + thresholds.uniform_growth_floor)


def _halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the second half minus that of the first, and its standard error, along the first axis."""
    middle = len(values) // 2
    first, second = values[:middle], values[middle:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        drift = np.nanmean(second, axis=0) - np.nanmean(first, axis=0)
        error = np.sqrt(np.nanvar(first, axis=0, ddof=1) / middle + np.nanvar(second, axis=0, ddof=1) / middle)
    return drift, error


def _falls(loss: np.ndarray, share: float) -> bool:
    if not np.isfinite(loss).all():
        return False
    drift, error = _halves(loss)
    return bool(drift < -share * abs(loss[: len(loss) // 2].mean()) and drift < -2 * error)


def _names(history: AttentionHistory, flagged: np.ndarray) -> tuple[str, ...]:
    return tuple(history.sites[index] for index in flagged)


def _first_step(history: AttentionHistory, since: np.ndarray, flagged: np.ndarray) -> int:
    return int(history.steps[since[flagged].min()])


def _at(history: AttentionHistory, flagged: np.ndarray) -> str:
    """`at 3 of 12 layers (a, b, …)`, in words."""
    names = _names(history, flagged)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"at {len(names)} of {len(history.sites)} sites ({shown})"
