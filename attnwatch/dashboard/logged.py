"""Histories read back from runs that were logged to TensorBoard."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from attnwatch.dashboard.events import read_events
from attnwatch.dashboard.scalars import LOSS_TAG, TOTAL_STEPS_TAG, run_tags
from attnwatch.errors import ConfigurationError
from attnwatch.layers import LayerStatistic
from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Statistic

_LOSS_TAGS = (
    LOSS_TAG,
    "loss",
    "train_loss",
    "train/loss",
    "training_loss",
    "loss_step",
    "train_loss_step",
    "train/loss_step",
)
_MOST_POINTS = 10**8
_OLD_TOTAL_STEPS_TAG = "attention/total_steps"
Curve = Mapping[int, float]


def read_logged(directory: str | os.PathLike[str], *, loss_tag: str | None = None) -> AttentionHistory:
    """Return the curves of layers as a history.

    A layer counts as one head, and what is logged for the whole model only as the same in all of them.

    Args:
        directory: folder with the event files of one run.
        loss_tag: tag of the training loss; None means the first of the usual names that is there.

    Raises:
        ConfigurationError: there is no such run, none with attention in it, or no such tag.
        ImportError: tensorboard is missing.
    """
    curves = _renamed(_curves(Path(directory)))
    of_model = {
        name: curves[statistic.tag] for name, statistic in Statistic.registry.items() if statistic.tag in curves
    }
    of_layers = _of_layers(curves)
    if not of_model:
        raise ConfigurationError(
            f"`directory`: {os.fspath(directory)!r} has no curves of attention ({run_tags()[0]}, …); log with an "
            "AttentionMonitor, or give the directory of one run."
        )
    steps = sorted({step for curve in of_model.values() for step in curve})
    layers = sorted({layer for _, layer in of_layers}, key=_natural) or ["model"]
    if len(steps) * len(layers) > _MOST_POINTS:
        raise ConfigurationError(
            f"`directory`: {os.fspath(directory)!r} has {len(steps):,} steps of {len(layers):,} layers, more than any "
            "run has; give the directory of one run."
        )
    values = {name: np.full((len(steps), len(layers), 1), np.nan, dtype=np.float32) for name in Statistic.registry}
    for name, array in values.items():
        for site, layer in enumerate(layers):
            curve = of_layers.get((name, layer), of_model.get(name, {}))
            array[:, site, 0] = [curve.get(step, np.nan) for step in steps]
    tag = _loss_tag(curves, loss_tag)
    loss = _at(steps, {} if tag is None else curves[tag])
    total_steps = _total_steps(curves.get(TOTAL_STEPS_TAG, {}))
    columns = {name: _column(curves, statistic, steps, layers) for name, statistic in LayerStatistic.registry.items()}
    return AttentionHistory(
        np.array(steps, dtype=np.int64), tuple(layers), values, loss, total_steps=total_steps, layers=columns
    )


def _curves(directory: Path) -> Mapping[str, Curve]:
    files = sorted(directory.glob("*tfevents*"))
    if not files:
        runs = sorted({str(file.parent) for file in directory.rglob("*tfevents*")})
        inside = f" There are some in {', '.join(map(repr, runs[:5]))}." if runs else ""
        raise ConfigurationError(f"`directory`: {str(directory)!r} has no event files of TensorBoard.{inside}")
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for file in files:
        for event in read_events(file):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    curves[value.tag][event.step] = value.simple_value
    return curves


def _renamed(curves: Mapping[str, Curve]) -> Mapping[str, Curve]:
    """Return the curves under the tags that they have now."""
    renamed: dict[str, dict[int, float]] = defaultdict(dict)
    for tag, curve in curves.items():
        renamed[_present_tag(tag)].update(curve)
    return renamed


def _present_tag(tag: str) -> str:
    """Return the present tag of a curve, given one of any version."""
    if tag == _OLD_TOTAL_STEPS_TAG:
        return TOTAL_STEPS_TAG
    if (match := re.fullmatch(r"attention/([^/]+)", tag)) and match[1] in Statistic.registry:
        return Statistic.registry[match[1]].tag
    if (match := re.fullmatch(r"attention_([^/]+)/(.+)", tag)) and match[1] in Statistic.registry:
        return Statistic.registry[match[1]].layer_tag(match[2])
    if (match := re.fullmatch(r"layers/([^/]+)/(.+)", tag)) and match[1] in LayerStatistic.registry:
        return LayerStatistic.registry[match[1]].tag(match[2])
    return tag


def _of_layers(curves: Mapping[str, Curve]) -> dict[tuple[str, str], Curve]:
    found = {}
    for tag, curve in curves.items():
        match = re.fullmatch(r"layers_([^/]+)/(.+)", tag)
        if match and match[1] in Statistic.registry:
            found[match[1], match[2]] = curve
    return found


def _column(curves: Mapping[str, Curve], statistic: LayerStatistic, steps: list[int], layers: list[str]) -> np.ndarray:
    """Return a layer statistic, float32 [steps, layers]."""
    by_layer = [curves.get(statistic.tag(layer), {}) for layer in layers]
    column = [[curve.get(step, np.nan) for curve in by_layer] for step in steps]
    return np.array(column, dtype=np.float32).reshape(len(steps), len(layers))


def _loss_tag(curves: Mapping[str, Curve], asked: str | None) -> str | None:
    if asked is not None and asked not in curves:
        others = sorted(tag for tag in curves if not tag.startswith(("attention", "layers_")))
        raise ConfigurationError(f"`loss_tag` {asked!r} was not logged; there are: {', '.join(others) or 'none'}.")
    return asked or next((tag for tag in _LOSS_TAGS if tag in curves), None)


def _total_steps(curve: Curve) -> int | None:
    """Return the latest number of steps that was logged."""
    latest = curve[max(curve)] if curve else np.nan
    return int(latest) if np.isfinite(latest) and latest >= 1 else None


def _at(steps: list[int], curve: Curve) -> np.ndarray:
    """Return the curve at these steps; nan where it has no point nearer than half of the way to the next step.

    Not interpolated: that would have less noise than any loss.
    """
    values = np.full(len(steps), np.nan)
    if not curve or len(steps) < 2:
        return values
    known, gap = np.array(sorted(curve)), np.median(np.diff(steps))
    for index, step in enumerate(steps):
        nearest = known[np.abs(known - step).argmin()]
        if 2 * abs(nearest - step) <= gap:
            values[index] = curve[nearest]
    return values


def _natural(label: str) -> list[tuple[bool, int | str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", label)]
