"""Recipes of all runs."""

import itertools
from collections.abc import Iterator

from benchmarks.verdicts.faults import FAULTS, SOUND
from benchmarks.verdicts.runs import Recipe
from benchmarks.verdicts.tasks import Task

_NEEDS_PADDING = {"mask inverted", "mask ignored"}
_PADDED = {"recall", "text"}
_SOUND_RUNS = 20
# Of tasks whose runs are quick, each fault is seen in so many runs.
_TIMES = {"recall": 2, "copy": 2, "images": 2}


def recipes(task: Task) -> Iterator[Recipe]:
    """Yield sound recipes, which take turns in settings and architectures, then recipes with each fault."""
    architectures = list(task.architectures)
    settings = itertools.cycle(SOUND)
    for number in range(_SOUND_RUNS):
        yield Recipe(task.name, architectures[number % len(architectures)], next(settings), seed=number)
    faults = [fault for fault in FAULTS if task.name in _PADDED or fault not in _NEEDS_PADDING]
    for number, (fault, again) in enumerate(itertools.product(faults, range(_TIMES.get(task.name, 1)))):
        architecture = architectures[(number + again) % len(architectures)]
        yield Recipe(task.name, architecture, fault=fault, seed=100 + number)
