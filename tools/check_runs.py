"""Check the first steps of the runs of `benchmarks.verdicts` that are not checked yet.

    python -m tools.check_runs [--data DIRECTORY] [--runs DIRECTORY] [--out PATH] [--workers N]

Each run is trained again by its recipe with a `TrainingCheckup`, up to the checkup's later look and for at most a
quarter of the budget. --data is the folder with which the runs were trained, see `tools.train_runs`.
"""

import argparse
import multiprocessing
import time
from functools import partial
from pathlib import Path

from benchmarks.common import progress, show
from benchmarks.verdicts.checked import CHECKED, CheckedRun, CheckedRuns, check
from benchmarks.verdicts.recipes import recipes
from benchmarks.verdicts.retrain import start_worker
from benchmarks.verdicts.runs import STORED, Recipe, RunStore
from benchmarks.verdicts.tasks import tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with real digits and sentences")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: the stored ones)")
    parser.add_argument("--out", type=Path, help="file that is written (default: the stored one)")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    options = parser.parse_args()
    store = RunStore(options.runs) if options.runs else STORED
    checked = CheckedRuns(options.out) if options.out else CHECKED
    begin, names = time.perf_counter(), set(store) - set(checked)
    of_tasks = (recipes(task) for task in tasks(options.data).values())
    missing = [recipe for of_task in of_tasks for recipe in of_task if recipe.name in names]
    with multiprocessing.get_context("spawn").Pool(options.workers, start_worker) as pool:
        finished = pool.imap_unordered(partial(_check, data=options.data), missing)
        for name, each in progress(finished, "runs", total=len(missing)):
            checked.add(name, each)
    same = sum(each.is_of(store[name]) for name, each in checked.items())
    show(
        f"{len(missing)} runs were checked in {time.perf_counter() - begin:.0f} s with {options.workers} processes. "
        f"The first losses of {same} of {len(checked)} runs are the stored ones."
    )


def _check(recipe: Recipe, *, data: Path | None) -> tuple[str, CheckedRun]:
    return recipe.name, check(recipe, tasks(data)[recipe.task])


if __name__ == "__main__":
    main()
