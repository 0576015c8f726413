"""Signs in the weights, gradients, updates and outputs of the layers."""

import numpy as np

from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.signs.base import layers_of, sign
from attnwatch.utils.reductions import nan_median

# Adam with its usual rate changes random weights by up to 5% in the first step, and by 1% later.
_OVERWRITING_UPDATE, _LARGE_UPDATE, _USUAL_UPDATE = 2.0, 0.2, 0.05
# Training from random weights has larger ones, and fine-tuning at a rate of 1e-6 has 1e-5 and more.
_SMALL_UPDATE, _TINY_UPDATE, _ENDED = 1e-3, 2e-6, 1e-3
_FALLEN, _GROWN, _KEPT = 0.85, 2.0, (0.97, 1.1)
_SAME_NORM = 1e-6
_GRADIENTS_GROWN = 8.0
_OVER_DEPTH = 30.0
_TINY_STATE = 1e-3
_LEAST_OBSERVATIONS = 6


@sign
def updates_large(run: RunCourse) -> str | None:
    """An update of the optimizer changes the weights by a large part of their norm."""
    updates = _middle(run, "update_ratio")
    if not np.isfinite(updates).any() or np.nanmax(updates) < _LARGE_UPDATE:
        return None
    step = run.evidence.steps[int(np.nanargmax(updates))]
    return f"one update was {np.nanmax(updates):.2g} times as large as the weights (norm, at step {step})"


@sign
def updates_overwrite(run: RunCourse) -> str | None:
    """An update is larger than the weights, so that nothing of them is left."""
    updates = _middle(run, "update_ratio")
    if not np.isfinite(updates).any() or np.nanmax(updates) < _OVERWRITING_UPDATE:
        return None
    return f"{np.mean(updates[np.isfinite(updates)] >= _OVERWRITING_UPDATE):.0%} of the updates overwrite the weights"


@sign
def updates_usual(run: RunCourse) -> str | None:
    """All updates are of the size that sound runs have."""
    updates = _middle(run, "update_ratio")
    if not np.isfinite(updates).any() or not _SMALL_UPDATE < np.nanmax(updates) <= _USUAL_UPDATE:
        return None
    return f"no update changed the weights by more than {np.nanmax(updates):.2%} of their norm"


@sign
def updates_small(run: RunCourse) -> str | None:
    """Updates of the optimizer are smaller than in training from random weights."""
    updates = _middle(run, "update_ratio")
    if not np.isfinite(updates).any() or updates_tiny(run) is not None or not 0 < np.nanmax(updates) <= _SMALL_UPDATE:
        return None
    return f"no update changed the weights by more than {np.nanmax(updates):.1g} of their norm"


@sign
def updates_tiny(run: RunCourse) -> str | None:
    """Updates of the optimizer are far smaller than in training or fine-tuning."""
    updates = _middle(run, "update_ratio")
    if not np.isfinite(updates).any() or not np.nanmax(updates) > 0 or np.nanmedian(updates) > _TINY_UPDATE:
        return None
    return f"updates change the weights by {np.nanmedian(updates):.1g} of their norm"


@sign
def updates_zero(run: RunCourse) -> str | None:
    """The steps of the optimizer change no weight."""
    updates = _columns(run, "update_ratio")
    if np.isfinite(updates).sum() < _LEAST_OBSERVATIONS or np.nanmax(updates) > 0:
        return None
    return "the steps of the optimizer change no weight of the layers"


@sign
def updates_end(run: RunCourse) -> str | None:
    """Updates have become far smaller than they were, long before the run ends."""
    updates = _middle(run, "update_ratio")
    third = len(updates) // 3
    if third < 2 or not (np.isfinite(updates[:third]).any() and np.isfinite(updates[-third:]).any()):
        return None
    first, last = np.nanmax(updates[:third]), np.nanmax(updates[-third:])
    if not first > 0 or last > _ENDED * first:
        return None
    return f"updates have shrunk from {first:.2g} to {last:.2g} of the weights"


@sign
def weights_stand_still(run: RunCourse) -> str | None:
    """The norms of the weights do not change, though gradients reach them and no optimizer was seen to step."""
    weights, gradients = _columns(run, "weight_norm"), _columns(run, "gradient_norm")
    is_trained = np.isfinite(_columns(run, "update_ratio")).any()
    if is_trained or not weights.size or len(weights) < _LEAST_OBSERVATIONS or not np.isfinite(weights).all():
        return None
    if np.ptp(weights, axis=0).max() > _SAME_NORM * weights.max() or not (gradients > 0).any():
        return None
    return "the norms of all layers' weights stay as they were, though they have gradients"


@sign
def weights_fall(run: RunCourse) -> str | None:
    """The norms of the weights fall."""
    growth = _growth(run, "weight_norm")
    if growth is None or growth > _FALLEN:
        return None
    return f"the norms of the layers' weights have fallen to {growth:.0%} of their first values"


@sign
def weights_grow(run: RunCourse) -> str | None:
    """The norms of the weights grow to a multiple."""
    growth = _growth(run, "weight_norm")
    if growth is None or growth < _GROWN:
        return None
    return f"the norms of the layers' weights have grown {growth:.3g}-fold"


@sign
def weights_keep_norm(run: RunCourse) -> str | None:
    """The norms of the weights stay near their first values."""
    growth = _growth(run, "weight_norm")
    if growth is None or not _KEPT[0] <= growth <= _KEPT[1]:
        return None
    return f"the norms of the layers' weights stay near their first values (now {growth:.3g} times as large)"


@sign
def gradients_zero(run: RunCourse) -> str | None:
    """No gradient reaches the layers."""
    gradients = _columns(run, "gradient_norm")
    if (gradients > 0).any() or not (np.isfinite(gradients).any() or updates_zero(run) is not None):
        return None
    return "the gradients of all layers are zero"


@sign
def gradients_zero_in_some(run: RunCourse) -> str | None:
    """No gradient reaches some of the layers."""
    has_none = np.all(~(_columns(run, "gradient_norm") > 0), axis=0)
    if has_none.all() or not has_none.any():
        return None
    return f"{layers_of(run.evidence.sites, has_none)} never had a gradient, but other layers had"


@sign
def gradients_grow(run: RunCourse) -> str | None:
    """The gradients grow to a multiple."""
    growth = _growth(run, "gradient_norm")
    if growth is None or growth < _GRADIENTS_GROWN:
        return None
    return f"the norms of the gradients have grown {growth:.3g}-fold"


@sign
def lost_after_usual_updates(run: RunCourse) -> str | None:
    """Weights or gradients are no longer finite, though no update before was large."""
    updates = _middle(run, "update_ratio")
    weights, gradients = _middle(run, "weight_norm"), _middle(run, "gradient_norm")
    if not len(updates) or not np.isfinite(weights[0]) or (np.isfinite(weights[-1]) and np.isfinite(gradients[-1])):
        return None
    before = np.isfinite(weights)
    known = updates[before & np.isfinite(updates)]
    if not (known <= _USUAL_UPDATE).all() or not (len(known) or not np.isfinite(gradients[0])):
        return None
    if not len(known):
        return "the gradients were not finite from the start"
    return f"weights or gradients are lost, though no update before changed the weights by more than {known.max():.2%}"


@sign
def states_grow_over_depth(run: RunCourse) -> str | None:
    """The outputs of the last layers are many times larger or smaller than those of the first ones at the start."""
    norms = _columns(run, "output_norm")[:1]
    known = norms[np.isfinite(norms) & (norms > 0)]
    if len(known) < 2 or 1 / _OVER_DEPTH < known[-1] / known[0] < _OVER_DEPTH:
        return None
    return f"the norms of the layers' outputs go from {known[0]:.2g} to {known[-1]:.2g} at the start"


@sign
def states_tiny_at_start(run: RunCourse) -> str | None:
    """The outputs of the layers are almost zero at the start."""
    norms = _columns(run, "output_norm")[:1]
    if not np.isfinite(norms).any() or np.nanmax(norms) > _TINY_STATE:
        return None
    return f"the layers' outputs are almost zero at the start (norm {np.nanmax(norms):.2g})"


def _columns(run: RunCourse, statistic: str) -> np.ndarray:
    """Return a layer statistic, [observations, sites]; nan where it was not recorded."""
    return run.memo(f"layers {statistic}", lambda run: run.layers(statistic))


def _middle(run: RunCourse, statistic: str) -> np.ndarray:
    """Return the median over the layers, [observations]."""
    return run.memo(f"middle {statistic}", lambda run: nan_median(_columns(run, statistic)))


def _growth(run: RunCourse, statistic: str) -> float | None:
    """Return the median over time of the last tenth, divided by the first value; None if too little is known."""
    values = _middle(run, statistic)
    values = values[np.isfinite(values)]
    if len(values) < _LEAST_OBSERVATIONS or not values[0] > 0:
        return None
    return float(np.median(values[-max(len(values) // 10, 1) :]) / values[0])
