"""Signs in the attention of the layers."""

import numpy as np

from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.signs.base import layers_of, sign

_CLEARLY = 4.0  # standard errors
_JUMP = np.log(3.0)
_UNIFORM, _CLEARLY_NOT_UNIFORM, _SHARP = 0.97, 0.93, 0.05


@sign
def attention_frozen(run: RunCourse) -> str | None:
    """Attention does not change beyond noise in any layer."""
    moved = _moved(run)
    if moved is None or moved.any():
        return None
    return "attention has been frozen in all layers since the first observation"


@sign
def attention_moves(run: RunCourse) -> str | None:
    """Attention changes beyond noise in at least one layer."""
    moved = _moved(run)
    if moved is None or not moved.any():
        return None
    return f"attention changes in {moved.sum()} of {len(moved)} layers"


@sign
def attention_stopped(run: RunCourse) -> str | None:
    """Attention changed at first and then froze."""
    spread = run.spread
    if spread is None or len(spread.values) < 30:
        return None
    number = len(spread.values)
    if not (np.abs(spread.change) > _CLEARLY).any():
        return None
    for index in (number // 4, number // 3, number // 2):
        rest = spread.since(index)
        is_still = (np.abs(rest.change) < 2.5).all()
        has_moved = np.abs(rest.values.mean(0) - spread.start).max() > np.log(1.3)
        if is_still and has_moved:
            return f"attention changed at first and has been frozen since step {spread.steps[index]}"
    return None


@sign
def uniform_everywhere(run: RunCourse) -> str | None:
    """Attention is uniform in all layers."""
    entropy = run.entropy
    if entropy is None or not (entropy.now > _UNIFORM).all():
        return None
    return f"attention is uniform in all layers (normalized entropy {entropy.now.min():.3f} or more)"


@sign
def uniform_in_some(run: RunCourse) -> str | None:
    """Attention is uniform in some layers but not in others."""
    entropy = run.entropy
    if entropy is None:
        return None
    uniform = entropy.now > _UNIFORM
    if uniform.all() or not uniform.any():
        return None
    return f"attention is uniform in {layers_of(entropy.names, uniform)}, but not in others"


@sign
def sharp_from_start(run: RunCourse) -> str | None:
    """Attention is concentrated on single keys from the start."""
    entropy = run.entropy
    if entropy is None or np.median(entropy.start) > _SHARP:
        return None
    return f"attention concentrates on single keys from the start (normalized entropy {np.median(entropy.start):.3f})"


@sign
def becomes_sharp(run: RunCourse) -> str | None:
    """Attention has collapsed to single keys."""
    entropy = run.entropy
    if entropy is None or entropy.now.min() > _SHARP or entropy.start.min() < 4 * _SHARP:
        return None
    span = f"{entropy.start.max():.2f} → {entropy.now.min():.3f}"
    return f"attention has collapsed to single keys (normalized entropy {span})"


@sign
def becomes_uniform(run: RunCourse) -> str | None:
    """Attention was not uniform but has become uniform."""
    entropy = run.entropy
    if entropy is None:
        return None
    lowest, now = np.median(entropy.smooth.min(0)), np.median(entropy.now)
    if now <= _UNIFORM or lowest >= _CLEARLY_NOT_UNIFORM:
        return None
    return f"attention has become uniform (normalized entropy {lowest:.2f} → {now:.3f})"


@sign
def attention_without_noise(run: RunCourse) -> str | None:
    """Attention changes, but with less noise than different batches cause."""
    spread, moved = run.spread, _moved(run)
    if spread is None or moved is None or not moved.any():
        return None
    half = spread.since(len(spread.values) // 2)
    noise = float(np.median(half.noise))
    if noise > 2e-3:
        return None
    return f"attention varies by {noise:.2%} from one observation to the next, as if the batch were the same"


def _moved(run: RunCourse) -> np.ndarray | None:
    """Return which layers moved beyond noise, bool [layers]."""
    return run.memo("moved layers", _moved_layers)


def _moved_layers(run: RunCourse) -> np.ndarray | None:
    if run.spread is None or run.entropy is None or run.spread.values.shape != run.entropy.values.shape:
        return None
    has_jumped = np.abs(run.spread.now - run.spread.start) > _JUMP  # so that the jump counts as noise
    return has_jumped | (np.abs(run.spread.change) > _CLEARLY) | (np.abs(run.entropy.change) > _CLEARLY)
