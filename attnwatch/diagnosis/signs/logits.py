"""Signs in the logits of the layers."""

import numpy as np

from attnwatch.diagnosis.course import Curve, RunCourse
from attnwatch.diagnosis.signs.base import layers_of, sign
from attnwatch.utils.labels import site_labels

_CLEARLY = 4.0  # standard errors
_STEADY = np.log(1.6)


@sign
def layers_frozen(run: RunCourse) -> str | None:
    """Logits of some layers keep their spread while those of others grow."""
    spread = run.spread
    if spread is None or len(spread.names) < 2:
        return None
    change = np.abs(spread.now - spread.start)
    steady, grown = change < _STEADY, spread.now - spread.start > np.log(3.0)
    if not (steady.any() and grown.any()):
        return None
    return f"logits of {layers_of(spread.names, steady)} keep their spread while those of others grow"


@sign
def logits_steady(run: RunCourse) -> str | None:
    """The spread of the logits stays close to its initial value in all layers."""
    spread = run.spread
    if spread is None or np.abs(spread.smooth - spread.start).max() > _STEADY:
        return None
    factor = np.exp(np.abs(spread.smooth - spread.start).max())
    return f"the spread of the logits stays within a factor of {factor:.2f} of its initial value in all layers"


@sign
def logits_grow_slowly(run: RunCourse) -> str | None:
    """The spread of the logits grows clearly, but only a little, in most layers."""
    spread = run.spread
    if spread is None:
        return None
    growth = spread.now - spread.start
    if np.mean((spread.change > _CLEARLY) & (growth > np.log(1.08))) < 0.5 or growth.max() > np.log(4.0):
        return None
    return f"the spread of the logits grows slowly ({np.exp(growth.max()):.2f}-fold in total)"


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
    """The spread of the logits shrinks to a small part of its maximum in most layers."""
    spread = run.spread
    if spread is None:
        return None
    shrinkage = float(np.median(spread.smooth.max(0) - spread.now))
    if shrinkage < np.log(3.0):
        return None
    return f"the spread of the logits has shrunk to {np.exp(-shrinkage):.2g} of its maximum"


@sign
def logits_vanish(run: RunCourse) -> str | None:
    """The spread of the logits shrinks to nothing."""
    spread = run.spread
    if spread is None or float(np.median(spread.smooth.max(0) - spread.now)) < np.log(50.0):
        return None
    if np.median(spread.now - spread.start) > 0:  # they grew far beyond the start, and fell back
        return None
    return f"logits have shrunk to nothing (spread {np.exp(np.median(spread.now)):.2g})"


@sign
def logits_large_at_start(run: RunCourse) -> str | None:
    """Logits are large from the start."""
    spread = run.spread
    if spread is None or np.exp(spread.start.max()) < 2.5:
        return None
    return f"logits are large from the start (spread {np.exp(spread.start.max()):.3g} in {_worst(spread)})"


@sign
def logits_sizeable_at_start(run: RunCourse) -> str | None:
    """Logits are larger at the start than with random weights, as in pretrained models or with QK-norm."""
    spread = run.spread
    if spread is None or not 1.0 <= np.exp(spread.start.max()) < 2.5:
        return None
    return f"the spread of the logits is {np.exp(spread.start.max()):.3g} at the start, more than random weights give"


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
    """The spread of the logits grew severalfold within the first observations."""
    spread = run.spread
    if spread is None or len(spread.values) < 20:
        return None
    jump = (spread.values[2:4].mean(0) - spread.start).max()
    if jump < np.log(4.0):
        return None
    return f"the spread of the logits grew {np.exp(jump):.3g}-fold by step {spread.steps[3]}"


def _largest(run: RunCourse) -> float:
    return float(np.nan_to_num(run.largest_logits, nan=-np.inf).max(initial=-np.inf))


def _worst(curve: Curve) -> str:
    return site_labels(curve.names)[int(curve.start.argmax())]
