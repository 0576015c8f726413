"""Which runs failed: what happened, not what was intended."""

from collections.abc import Iterable

import numpy as np

from benchmarks.verdicts.runs import Run

# Of the way from chance to what sound runs of that model reach.
REACHED = 0.75


def progress(runs: Iterable[Run]) -> dict[str, float]:
    """Of each run, by name: 0 is chance, 1 the median of the sound runs of that task and architecture."""
    runs = list(runs)
    sound: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if not run.recipe.fault:
            sound.setdefault((run.recipe.task, run.recipe.architecture), []).append(run.quality)
    median = {key: float(np.median(qualities)) for key, qualities in sound.items()}
    return {
        run.name: (run.quality - run.chance) / (median[run.recipe.task, run.recipe.architecture] - run.chance)
        for run in runs
    }


def failed(runs: Iterable[Run]) -> dict[str, bool]:
    """Whether a run, by name, did not reach what sound runs reach."""
    return {name: not share >= REACHED for name, share in progress(runs).items()}
