"""Runs read from logged numbers, by tag and step."""

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from attnwatch.dashboard.scalars import BAND_TAGS, LOSS_TAG, RATE_TAG, RISK_TAG, TOTAL_STEPS_TAG, run_tags
from attnwatch.errors import ConfigurationError
from attnwatch.layers import LayerStatistic
from attnwatch.recorder import AttentionHistory
from attnwatch.runs.record import RATE_CURVE, RISK_CURVE, Curve, RunRecord
from attnwatch.statistics import Statistic
from attnwatch.utils.files import UnreadableFileError
from attnwatch.utils.messages import listed

LOSS_ALONE = (
    "No attention was recorded, so the run is judged by its loss alone. This shows only a loss that has diverged "
    "or is no longer finite: a falling loss does not show that the run is sound. Train with an "
    "AttentionMonitor for a verdict."
)
"""Remark on a run without recorded attention."""
LAYERS_ALONE = "Logs have no numbers for single heads: each logged layer counts as one head."
"""Remark on a run whose attention was read from a log."""

_USUAL_LOSS_TAGS = (
    "loss",
    "train_loss",
    "train/loss",
    "training_loss",
    "loss_step",
    "train_loss_step",
    "train/loss_step",
)
_LOSS_TAGS = (LOSS_TAG, *_USUAL_LOSS_TAGS)
_MOST_POINTS = 10**8
_MOST_STEPS = 2**53
_STEPS = ("trainer/global_step", "train/global_step")
"""Names that Lightning and transformers give the training step in a row of a logger that counts rows."""
_KEPT = {RISK_CURVE: RISK_TAG, RATE_CURVE: RATE_TAG}
_TRAINER_PREFIX = "train/"  # transformers prepends it to what it reports to W&B and trackio


class Points:
    """Numbers by tag and step, in logging order. Of several at one step, the last one counts."""

    def __init__(self) -> None:
        self._steps: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._values: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def add(self, tag: str, step: int, value: float) -> None:
        """Add a number.

        Raises:
            UnreadableFileError: no run has this many steps.
        """
        if not -_MOST_STEPS <= step <= _MOST_STEPS:
            raise UnreadableFileError(f"is damaged: it has a step of {len(str(step))} digits")
        self._steps[tag].append(step)
        self._values[tag].append(value)

    def add_row(self, step: int, row: Mapping[str, object]) -> None:
        """Add the numeric entries of a row, except the step itself.

        Raises:
            UnreadableFileError: no run has this many steps, or a number is too large for a float.
        """
        for tag, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and tag not in _STEPS:
                try:
                    self.add(tag, step, float(value))
                except OverflowError as error:
                    raise UnreadableFileError(f"is damaged: a number at step {step} is too large") from error

    def curves(self) -> dict[str, Curve]:
        """Return the numbers of each tag in order of steps."""
        return {tag: _curve(np.array(self._steps[tag]), np.array(values)) for tag, values in self._values.items()}


def logged_run(
    name: str,
    curves: Mapping[str, Curve],
    *,
    source: str,
    loss_tag: str | None = None,
    total_steps: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> RunRecord:
    """Return a run made from logged numbers.

    Each layer counts as one head. A statistic logged only for the whole model gets the same values in all layers. If no
    attention was logged, the history has no sites, and holds the loss at every step at which it was logged.

    Args:
        name: short name of the run.
        curves: numbers by tag.
        source: kind of log, in words.
        loss_tag: tag of the training loss; None means the first usual name that is present.
        total_steps: number of steps that the run will have, if the log does not hold it.
        settings: arguments of the trainer by name.

    Raises:
        ConfigurationError: `loss_tag` was not logged.
        UnreadableFileError: there is neither attention nor a loss, or more than any run has.
    """
    curves = _without_prefix(curves)
    tag = _loss_tag(curves, loss_tag)
    loss = Curve(np.empty(0, dtype=np.int64), np.empty(0)) if tag is None else curves[tag]
    total_steps = _total_steps(curves.get(TOTAL_STEPS_TAG)) or total_steps
    of_model = {each: curves[kind.tag] for each, kind in Statistic.registry.items() if kind.tag in curves}
    if not of_model and tag is None:
        raise UnreadableFileError(
            f"has no attention curves ({run_tags()[0]}, …) and no training loss under a usual name "
            f"({', '.join(_USUAL_LOSS_TAGS[:3])}, …); log with an AttentionMonitor, or name the tag of the loss "
            f"(--loss-tag); logged tags: {_listed(curves)}"
        )
    history = _history(curves, of_model, loss, total_steps) if of_model else _of_loss(loss, total_steps)
    return RunRecord(
        name,
        history,
        curves=others(curves) | {name: curves[tag] for name, tag in _KEPT.items() if tag in curves},
        settings=settings or {},
        source=source,
        remarks=(LAYERS_ALONE if of_model else LOSS_ALONE,),
    )


def step_of(row: Mapping[str, object], *, otherwise: int) -> int:
    """Return the step of the training at which a row was logged."""
    given = (row[tag] for tag in _STEPS if tag in row)
    return next((int(step) for step in given if isinstance(step, int | float)), otherwise)


def as_text(value: object) -> str:
    """Return a configuration entry as text."""
    return value if isinstance(value, str) else json.dumps(value)


def others(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return the curves that an AttentionMonitor did not log."""
    return {tag: curve for tag, curve in curves.items() if not _is_ours(tag)}


def _curve(steps: np.ndarray, values: np.ndarray) -> Curve:
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    is_last = np.append(np.diff(steps) > 0, True)
    return Curve(steps[is_last], values[is_last])


def _without_prefix(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return the curves, with the trainer's prefix removed from the tags of attnwatch."""
    bare = {tag: tag.removeprefix(_TRAINER_PREFIX) for tag in curves}
    return {bare[tag] if _is_ours(bare[tag]) else tag: curve for tag, curve in curves.items()}


def _is_ours(tag: str) -> bool:
    return tag.partition("/")[0] in _our_groups()


def _our_groups() -> set[str]:
    """Return the part before the first slash of each tag that an AttentionMonitor logs."""
    of_run = [*run_tags(), TOTAL_STEPS_TAG, RATE_TAG, RISK_TAG, *BAND_TAGS]
    of_layers = [kind.layer_tag("layer") for kind in Statistic.registry.values()]
    of_layers += [kind.tag("layer") for kind in LayerStatistic.registry.values()]
    return {tag.partition("/")[0] for tag in (*of_run, *of_layers)}


def _history(
    curves: Mapping[str, Curve], of_model: Mapping[str, Curve], loss: Curve, total_steps: int | None
) -> AttentionHistory:
    of_layers = _of_layers(curves)
    steps = np.unique(np.concatenate([curve.steps for curve in of_model.values()]))
    steps = steps[steps >= 0]
    layers = sorted({layer for _, layer in of_layers}, key=_natural) or ["model"]
    if len(steps) * len(layers) > _MOST_POINTS:
        raise UnreadableFileError(
            f"has {len(steps):,} steps of {len(layers):,} layers, more than any one run has; give the log of one run"
        )
    values = {name: np.full((len(steps), len(layers), 1), np.nan, dtype=np.float32) for name in Statistic.registry}
    for name, column in values.items():
        for site, layer in enumerate(layers):
            curve = of_layers.get((name, layer), of_model.get(name))
            if curve is not None:
                column[:, site, 0] = _on(steps, curve)
    columns = {name: _column(curves, statistic, steps, layers) for name, statistic in LayerStatistic.registry.items()}
    nearby = _near(steps, loss)
    return AttentionHistory(steps, tuple(layers), values, nearby, total_steps=total_steps, layers=columns)


def _of_loss(loss: Curve, total_steps: int | None) -> AttentionHistory:
    """Return a history without sites."""
    is_known = loss.steps >= 0
    steps, values = loss.steps[is_known], loss.values[is_known]
    nothing = dict.fromkeys(Statistic.registry, np.empty((len(steps), 0, 0), dtype=np.float32))
    layers = dict.fromkeys(LayerStatistic.registry, np.empty((len(steps), 0), dtype=np.float32))
    return AttentionHistory(steps, (), nothing, values, total_steps=total_steps, layers=layers)


def _of_layers(curves: Mapping[str, Curve]) -> dict[tuple[str, str], Curve]:
    found = {}
    for tag, curve in curves.items():
        match = re.fullmatch(r"layers_([^/]+)/(.+)", tag, re.DOTALL)
        if match and match[1] in Statistic.registry:
            found[match[1], match[2]] = curve
    return found


def _column(curves: Mapping[str, Curve], statistic: LayerStatistic, steps: np.ndarray, layers: list[str]) -> np.ndarray:
    """Return a layer statistic, float32 [steps, layers]."""
    column = np.full((len(steps), len(layers)), np.nan, dtype=np.float32)
    for site, layer in enumerate(layers):
        if statistic.tag(layer) in curves:
            column[:, site] = _on(steps, curves[statistic.tag(layer)])
    return column


def _loss_tag(curves: Mapping[str, Curve], asked: str | None) -> str | None:
    if asked is not None and asked not in curves:
        raise ConfigurationError(f"`loss_tag` {asked!r} was not logged; logged tags: {_listed(curves)}.")
    return asked or next((tag for tag in _LOSS_TAGS if tag in curves), None)


def _listed(curves: Mapping[str, Curve]) -> str:
    return listed(sorted(others(curves)), most=20) or "none"


def _total_steps(curve: Curve | None) -> int | None:
    """Return the total number of steps that was logged last."""
    latest = np.nan if curve is None else curve.values[-1]
    return int(latest) if np.isfinite(latest) and latest >= 1 else None


def _on(steps: np.ndarray, curve: Curve) -> np.ndarray:
    """Return the curve at these steps, float64 [steps]; nan where it has no point."""
    values = np.full(len(steps), np.nan)
    _, here, there = np.intersect1d(steps, curve.steps, assume_unique=True, return_indices=True)
    values[here] = curve.values[there]
    return values


def _near(steps: np.ndarray, curve: Curve) -> np.ndarray:
    """Return the curve at these steps; nan where its nearest point is more than half a step interval away.

    The curve is not interpolated, as that would reduce its noise.
    """
    known = curve.steps
    if not len(known) or len(steps) < 2:
        return np.full(len(steps), np.nan)
    after = np.searchsorted(known, steps).clip(1, len(known) - 1) if len(known) > 1 else np.zeros_like(steps)
    before = np.maximum(after - 1, 0)
    nearest = np.where(steps - known[before] <= known[after] - steps, before, after)
    is_near = 2 * np.abs(known[nearest] - steps) <= np.median(np.diff(steps))
    return np.where(is_near, curve.values[nearest], np.nan)


def _natural(label: str) -> list[tuple[bool, int | str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", label)]
