"""Training of runs that a store lacks, several at a time, each in one thread."""

import logging
import multiprocessing
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
import transformers

from benchmarks.common import progress
from benchmarks.verdicts.runs import Recipe, Run, RunStore
from benchmarks.verdicts.tasks import tasks
from benchmarks.verdicts.train import train


def retrain(recipes: Iterable[Recipe], store: RunStore, *, data: Path | None = None, workers: int = 2) -> None:
    """Train every recipe that the store lacks, and add the run to the store as soon as it is finished.

    Args:
        recipes: of the runs that are wanted.
        store: where finished runs are kept.
        data: folder with real digits and sentences, see `tasks`.
        workers: number of processes.
    """
    stored = set(store)
    missing = [recipe for recipe in recipes if recipe.name not in stored]
    with multiprocessing.get_context("spawn").Pool(workers, start_worker) as pool:
        finished = progress(pool.imap_unordered(partial(_train, data=data), missing), "runs", total=len(missing))
        for run in finished:
            store.add(run)
            finished.set_postfix_str(run.name)


def start_worker() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _train(recipe: Recipe, *, data: Path | None) -> Run:
    return train(recipe, tasks(data)[recipe.task])
