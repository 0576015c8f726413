"""Trainings of the benchmark, in several processes."""

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.checkup.baselines import diagnosed
from benchmarks.checkup.blind import BLIND
from benchmarks.checkup.faults import FAULTS, cases_of
from benchmarks.checkup.fifth import FIFTH
from benchmarks.checkup.fourth import FOURTH
from benchmarks.checkup.held_out import HELD_OUT
from benchmarks.checkup.losses import FAULTS_OF_LOSSES
from benchmarks.checkup.odd_blind import ODD_BLIND
from benchmarks.checkup.odd_fifth import ODD_FIFTH
from benchmarks.checkup.odd_fourth import ODD_FOURTH
from benchmarks.checkup.odd_second import ODD_SECOND
from benchmarks.checkup.odd_third import ODD_THIRD
from benchmarks.checkup.scores import PLAIN
from benchmarks.checkup.scripts import Case, Outcome, Trained, run
from benchmarks.checkup.second import SECOND
from benchmarks.checkup.sound import SOUND
from benchmarks.checkup.third import THIRD
from benchmarks.checkup.trainers import TRAINERS, NotExpressible
from benchmarks.common import quiet_libraries

DIAGNOSED = "diagnosed"


@dataclass(frozen=True)
class Task:
    """A training.

    Attributes:
        case: number of the script among `all_cases`.
        way: a loop with a checkup, or `DIAGNOSED`.
        steps: of a training that is diagnosed.
    """

    case: int
    way: str = PLAIN
    steps: int = 0


@cache
def all_cases() -> Sequence[Case]:
    """Return all scripts: what checks were tuned on, then what they were not."""
    known = [*cases_of(FAULTS), *cases_of(HELD_OUT), *cases_of(FAULTS_OF_LOSSES), *SOUND]
    blind = [*cases_of(BLIND, "blind-1"), *ODD_BLIND, *cases_of(SECOND, "blind-2"), *ODD_SECOND]
    blind += [*cases_of(THIRD, "blind-3"), *ODD_THIRD, *cases_of(FOURTH, "blind-4"), *ODD_FOURTH]
    blind += [*cases_of(FIFTH, "blind-5"), *ODD_FIFTH]
    return [*known, *blind]


def done(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Outcome | str]]:
    """Yield tasks as they end, each with its outcome or the reason why a trainer does not run it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin) as pool:
        futures = {pool.submit(_outcome, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _begin() -> None:
    torch.set_num_threads(1)  # the models are too small for more
    warnings.simplefilter("ignore")
    quiet_libraries()


def _outcome(task: Task) -> Outcome | str:
    script = all_cases()[task.case].script
    try:
        if task.way == DIAGNOSED:
            return diagnosed(script, task.steps)
        return run(script) if task.way == PLAIN else TRAINERS[task.way](script)
    except NotExpressible as reason:
        return str(reason)
    except Exception as raised:  # is told with the script; the other trainings go on
        return Outcome([], {}, Trained([], [], f"{type(raised).__name__}: {raised}"))
