"""Signs in the attention of the layers."""

import numpy as np

from attnwatch.diagnosis.course import Curve, RunCourse
from attnwatch.diagnosis.signs.base import sign
from attnwatch.utils.labels import site_labels

_CLEARLY = 4.0  # standard errors
_UNIFORM, _SHARP = 0.97, 0.05
_STEADY = np.log(1.6)


@sign
def attention_frozen(run: RunCourse) -> str | None:
    """Nothing moves in any layer beyond noise."""
    moved = _moved(run)
    if moved is None or moved.any():
        return None
    return "attention is frozen from the first observation in all layers"


@sign
def attention_moves(run: RunCourse) -> str | None:
    """Attention moves beyond noise in some layer."""
    moved = _moved(run)
    if moved is None or not moved.any():
        return None
    return f"attention moves in {moved.sum()} of {len(moved)} layers"


@sign
def attention_stopped(run: RunCourse) -> str | None:
    """Attention moved at first and then froze."""
    spread = run.spread
    if spread is None or len(spread.values) < 30:
        return None
    number = len(spread.values)
    if not (np.abs(spread.change()) > _CLEARLY).any():
        return None
    for index in (number // 4, number // 3, number // 2):
        rest = spread.since(index)
        is_still = (np.abs(rest.change()) < 2.5).all()
        has_moved = np.abs(rest.values.mean(0) - spread.start).max() > np.log(1.3)
        if is_still and has_moved:
            return f"attention moved at first and is frozen since step {spread.steps[index]}"
    return None


@sign
def layers_frozen(run: RunCourse) -> str | None:
    """Logits of some layers keep their spread while those of others learn."""
    spread = run.spread
    if spread is None or len(spread.names) < 2:
        return None
    change = np.abs(spread.now - spread.start)
    steady, grown = change < _STEADY, spread.now - spread.start > np.log(3.0)
    if not (steady.any() and grown.any()):
        return None
    return f"logits of {_layers(run, spread, steady)} keep their spread while those of others grow"


@sign
def logits_steady(run: RunCourse) -> str | None:
    """The spread of the logits stays near where it began in all layers."""
    spread = run.spread
    if spread is None or np.abs(spread.smooth - spread.start).max() > _STEADY:
        return None
    factor = np.exp(np.abs(spread.smooth - spread.start).max())
    return f"the spread of the logits stays within {factor:.2f} times its start in all layers"


@sign
def logits_grow_slowly(run: RunCourse) -> str | None:
    """The spread of the logits grows clearly, but little, in most layers."""
    spread = run.spread
    if spread is None:
        return None
    growth = spread.now - spread.start
    if np.mean((spread.change() > _CLEARLY) & (growth > np.log(1.08))) < 0.5 or growth.max() > np.log(4.0):
        return None
    return f"the spread of the logits grows slowly ({np.exp(growth.max()):.2f}-fold in all)"


@sign
def logits_learn(run: RunCourse) -> str | None:
    """The spread of the logits grows as in runs that learn."""
    spread = run.spread
    if spread is None:
        return None
    growth = (spread.now - spread.start).max()
    if growth < np.log(2.5) or _largest(run) > 200:
        return None
    return f"the spread of the logits has grown {np.exp(growth):.3g}-fold"


@sign
def logits_shrink(run: RunCourse) -> str | None:
    """The spread of the logits shrinks to a small part in most layers."""
    spread = run.spread
    if spread is None:
        return None
    shrinkage = float(np.median(spread.smooth.max(0) - spread.now))
    if shrinkage < np.log(3.0):
        return None
    return f"the spread of the logits has shrunk to {np.exp(-shrinkage):.2g} of its largest"


@sign
def logits_vanish(run: RunCourse) -> str | None:
    """The spread of the logits shrinks to nothing."""
    spread = run.spread
    if spread is None or float(np.median(spread.smooth.max(0) - spread.now)) < np.log(50.0):
        return None
    return f"logits have shrunk to nothing (spread {np.exp(np.median(spread.now)):.2g})"


@sign
def logits_large_at_start(run: RunCourse) -> str | None:
    """Logits are large from the start."""
    spread = run.spread
    if spread is None or np.exp(spread.start.max()) < 2.5:
        return None
    return f"logits are large from the start (spread {np.exp(spread.start.max()):.3g} in {_worst(run, spread)})"


@sign
def logits_sizeable_at_start(run: RunCourse) -> str | None:
    """Logits are larger at the start than random weights make them, as of pretrained models or with QK-norm."""
    spread = run.spread
    if spread is None or not 1.0 <= np.exp(spread.start.max()) < 2.5:
        return None
    return f"the logits' spread is {np.exp(spread.start.max()):.3g} at the start, more than random weights give"


@sign
def logits_tiny_at_start(run: RunCourse) -> str | None:
    """Logits are nearly zero at the start."""
    spread = run.spread
    if spread is None or np.exp(spread.start.max()) > 5e-3:
        return None
    return f"logits are nearly zero at the start (spread {np.exp(spread.start.max()):.2g} or less)"


@sign
def logits_explode(run: RunCourse) -> str | None:
    """Logits have grown far beyond those of sound runs."""
    known = run.largest_logits[np.isfinite(run.largest_logits)]
    if len(known) < 3 or known.max() < 150 or known.max() < 5 * known[:3].min():
        return None
    return f"the largest logit has grown from {known[0]:.3g} to {known.max():.3g}"


@sign
def logits_jump_at_once(run: RunCourse) -> str | None:
    """The spread of the logits multiplied within the first observations."""
    spread = run.spread
    if spread is None or len(spread.values) < 20:
        return None
    jump = (spread.values[2:4].mean(0) - spread.start).max()
    if jump < np.log(4.0):
        return None
    return f"the spread of the logits grew {np.exp(jump):.3g}-fold by step {spread.steps[3]}"


@sign
def uniform_everywhere(run: RunCourse) -> str | None:
    """Attention is uniform in all layers."""
    entropy = run.entropy
    if entropy is None or not (entropy.now > _UNIFORM).all():
        return None
    return f"attention is uniform in all layers (normalized entropy {entropy.now.min():.3f} or more)"


@sign
def uniform_in_some(run: RunCourse) -> str | None:
    """Attention is uniform in some layers and not in others."""
    entropy = run.entropy
    if entropy is None:
        return None
    uniform = entropy.now > _UNIFORM
    if uniform.all() or not uniform.any():
        return None
    return f"attention is uniform in {_layers(run, entropy, uniform)}, and not in others"


@sign
def sharp_from_start(run: RunCourse) -> str | None:
    """Attention is on single keys from the start."""
    entropy = run.entropy
    if entropy is None or np.median(entropy.start) > _SHARP:
        return None
    return f"attention is on single keys from the start (normalized entropy {np.median(entropy.start):.3f})"


@sign
def becomes_sharp(run: RunCourse) -> str | None:
    """Attention has collapsed to single keys."""
    entropy = run.entropy
    if entropy is None or entropy.now.min() > _SHARP or entropy.start.min() < 4 * _SHARP:
        return None
    return f"attention has collapsed to single keys (normalized entropy {entropy.start.max():.2f} → {entropy.now.min():.3f})"


@sign
def becomes_uniform(run: RunCourse) -> str | None:
    """Attention was not uniform and has become so."""
    entropy = run.entropy
    if entropy is None or not (np.median(entropy.now) > _UNIFORM and np.median(entropy.smooth.min(0)) < 0.93):
        return None
    return f"attention has become uniform (normalized entropy {np.median(entropy.smooth.min(0)):.2f} → {np.median(entropy.now):.3f})"


@sign
def attention_without_noise(run: RunCourse) -> str | None:
    """Attention has less noise than batches of different data have, although it moves."""
    spread, moved = run.spread, _moved(run)
    if spread is None or moved is None or not moved.any():
        return None
    half = spread.since(len(spread.values) // 2)
    noise = float(np.median(half.noise))
    if noise > 2e-3:
        return None
    return f"attention varies by {noise:.2%} from one observation to the next, as if the batch were the same"


@sign
def same_keys_each_time(run: RunCourse) -> str | None:
    """All rows see equally many keys, at each observation: no causal mask and no padding."""
    keys = _visible_keys(run)
    if keys is None or keys.std() > 1e-3 * keys.mean() or abs(keys.mean() - round(keys.mean())) > 0.01:
        return None
    return f"every query sees the same {keys.mean():.0f} keys: no causal mask, no padding"


@sign
def keys_vary(run: RunCourse) -> str | None:
    """The number of visible keys varies: there is padding."""
    keys = _visible_keys(run)
    if keys is None or keys.std() < 5e-3 * keys.mean():
        return None
    return f"the number of visible keys varies with the batch ({keys.min():.1f} to {keys.max():.1f}): there is padding"


@sign
def keys_vary_much(run: RunCourse) -> str | None:
    """The number of visible keys varies as that of padding, which is small."""
    keys = _visible_keys(run)
    if keys is None or keys.std() < 0.12 * keys.mean():
        return None
    return f"the number of visible keys varies by {keys.std() / keys.mean():.0%} from batch to batch"


@sign
def few_keys(run: RunCourse) -> str | None:
    """Queries see few keys."""
    keys = _visible_keys(run)
    if keys is None or keys.mean() > 4:
        return None
    return f"queries see only {keys.mean():.1f} keys on average"


@sign
def one_key(run: RunCourse) -> str | None:
    """Queries see a single key, where entropy is unknown although logits are finite."""
    nonfinite = run.evidence.mean("nonfinite")
    entropy = run.evidence.mean("normalized_entropy")
    blind = (np.nan_to_num(nonfinite, nan=1.0) == 0) & np.isnan(entropy)
    if not len(blind) or not blind.all(0).any():
        return None
    return f"queries see a single key in {blind.all(0).sum()} of {blind.shape[1]} layers"


@sign
def nan_from_start(run: RunCourse) -> str | None:
    """Logits are not finite within the first observations."""
    bad = np.flatnonzero(run.nonfinite > 0)
    if not len(bad) or bad[0] > 2:
        return None
    return f"logits are not finite at step {run.evidence.steps[bad[0]]} already"


@sign
def nan_later(run: RunCourse) -> str | None:
    """Logits became not finite after a while."""
    bad = np.flatnonzero(run.nonfinite > 0)
    if not len(bad) or bad[0] <= 2:
        return None
    return f"logits are not finite since step {run.evidence.steps[bad[0]]}"


def _moved(run: RunCourse) -> np.ndarray | None:
    """Return which layers moved beyond noise, bool [layers]."""
    if run.spread is None or run.entropy is None or run.spread.values.shape != run.entropy.values.shape:
        return None
    return (np.abs(run.spread.change()) > _CLEARLY) | (np.abs(run.entropy.change()) > _CLEARLY)


def _largest(run: RunCourse) -> float:
    return float(np.nan_to_num(run.largest_logits, nan=-np.inf).max(initial=-np.inf))


def _visible_keys(run: RunCourse) -> np.ndarray | None:
    """Return the geometric mean of the number of visible keys at each observation."""
    return None if run.max_entropy is None else np.exp(run.max_entropy.values.mean(1))


def _layers(run: RunCourse, curve: Curve, which: np.ndarray) -> str:
    labels = site_labels(curve.names)
    chosen = [labels[index] for index in np.flatnonzero(which)]
    return ", ".join(chosen[:3]) + (f" and {len(chosen) - 3} more" if len(chosen) > 3 else "")


def _worst(run: RunCourse, curve: Curve) -> str:
    return site_labels(curve.names)[int(curve.start.argmax())]
