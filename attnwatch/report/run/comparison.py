"""First step at which two runs differ by more than noise."""

from collections.abc import Sequence

import numpy as np

from attnwatch.dashboard.scalars import over_heads
from attnwatch.recorder import AttentionHistory
from attnwatch.runs import RunRecord
from attnwatch.utils.labels import site_labels
from attnwatch.utils.messages import listed
from attnwatch.utils.reductions import nan_mean, second_differences

# Two curves count as different after _IN_A_ROW observations whose difference exceeds _FACTOR times their noise.
_FACTOR, _IN_A_ROW = 6.0, 3
_FEWEST = 6
_WATCHED = ("normalized_entropy", "max_logit")


def first_differences(records: Sequence[RunRecord]) -> list[str]:
    """Return a sentence on where each later run first differs from the first one; empty for a single run."""
    return [_difference(records[0], record) for record in records[1:]]


def _difference(first: RunRecord, other: RunRecord) -> str:
    names = f"{first.name} and {other.name}"
    common = np.intersect1d(first.history.steps, other.history.steps)
    if len(common) < _FEWEST:
        return f"{names} have {len(common)} observed steps in common: too few to say where they differ."
    one, two = (history.at(np.isin(history.steps, common)) for history in (first.history, other.history))
    parts = [found for name in _WATCHED if (found := _of_attention(name, one, two))]
    loss = _parting(one.loss[:, None], two.loss[:, None])
    steps = [(int(common[index]), text) for index, text in parts]
    if loss[0] >= 0:
        steps.append((int(common[loss[0]]), "the loss"))
    if not steps:
        return f"{names} do not differ by more than their noise in {len(common)} common observations."
    steps.sort(key=lambda part: part[0])
    listed = ", ".join(f"{text} at step {step:,}" for step, text in steps)
    others = "" if _have_same_layers(one, two) else " (the models are different, so the mean over layers is compared)"
    return f"{names} first differ in {listed}{others}."


def _of_attention(name: str, one: AttentionHistory, two: AttentionHistory) -> tuple[int, str] | None:
    """Return the first observation at which layers differ, and which; different models are compared by the mean."""
    if name not in one.statistics or name not in two.statistics or not one.sites or not two.sites:
        return None
    curves = [over_heads(history, history.statistics[name]) for history in (one, two)]
    labels = [f"of {label.replace('_', ' ')}" for label in site_labels(one.sites)]
    if not _have_same_layers(one, two):
        curves, labels = [nan_mean(curve)[:, None] for curve in curves], ["averaged over layers"]
    starts = _parting(*curves)
    if not (starts >= 0).any():
        return None
    begin = int(starts[starts >= 0].min())
    where = [labels[index] for index in np.flatnonzero((starts >= 0) & (starts <= begin + _IN_A_ROW))]
    return begin, f"the {name.replace('_', ' ')} {listed(where, most=4)}"


def _have_same_layers(one: AttentionHistory, two: AttentionHistory) -> bool:
    """Return whether the models have the same layers, perhaps in modules of other names: a trainer may wrap one."""
    return site_labels(one.sites) == site_labels(two.sites)


def _parting(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return where the columns of two arrays [observations, columns] begin to differ; -1 for columns that do not."""
    difference = np.abs(one - two)
    noise = np.sqrt((_noise(one) ** 2 + _noise(two) ** 2) / 2) + 1e-6 * (1 + np.nanmax(np.abs(one), initial=0.0))
    apart = difference > _FACTOR * noise
    lasting = np.stack([apart[index : len(apart) - _IN_A_ROW + 1 + index] for index in range(_IN_A_ROW)]).all(0)
    return np.where(lasting.any(0), lasting.argmax(0), -1)


def _noise(curve: np.ndarray) -> np.ndarray:
    """Return an estimate of the noise of each column."""
    second = second_differences(curve)
    squares = np.where(np.isfinite(second), second**2, np.nan)
    with np.errstate(all="ignore"):
        typical = np.nanmedian(squares, axis=0) if squares.size else np.zeros(curve.shape[1])
    return np.sqrt(np.nan_to_num(typical) / 6 / 0.455)
