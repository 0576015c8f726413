"""Outcomes of runs: what happened, not what was intended."""

from collections.abc import Iterable

import numpy as np

from benchmarks.verdicts.runs import Run

# A run failed that is worse than nine in ten of the sound ones, by more than this share of the way from chance.
_WORST_OF_THE_SOUND = 0.1
_MARGIN = 0.05


def relative_quality(runs: Iterable[Run]) -> dict[str, float]:
    """Return the quality of each run by name: 0 is chance, 1 the median sound run of its task and architecture."""
    runs = list(runs)
    spans = _spans(runs)
    return {run.name: (run.quality - run.chance) / spans[_model(run)] for run in runs}


def failed(runs: Iterable[Run]) -> dict[str, bool]:
    """Return, by the name of each run, True if it did not reach what the sound runs of its task reach."""
    runs = list(runs)
    reached = relative_quality(runs)
    sound: dict[str, list[float]] = {}
    for run in runs:
        if not run.recipe.fault:
            sound.setdefault(run.recipe.task, []).append(reached[run.name])
    least = {task: np.quantile(shares, _WORST_OF_THE_SOUND) - _MARGIN for task, shares in sound.items()}
    return {run.name: not reached[run.name] >= least[run.recipe.task] for run in runs}


def _spans(runs: list[Run]) -> dict[tuple[str, str], float]:
    """Return the gain over chance of the median sound run of each task and architecture."""
    sound: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if not run.recipe.fault:
            sound.setdefault(_model(run), []).append(run.quality - run.chance)
    return {model: float(np.median(gains)) for model, gains in sound.items()}


def _model(run: Run) -> tuple[str, str]:
    return run.recipe.task, run.recipe.architecture
