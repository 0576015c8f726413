"""Makes the runs anew, several at a time, each in one thread."""

import logging
import multiprocessing
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from benchmarks.verdicts.runs import Recipe, is_stored
from benchmarks.verdicts.tasks import tasks
from benchmarks.verdicts.train import train


def retrain(recipes: Sequence[Recipe], directory: Path, *, data: Path | None, workers: int) -> None:
    """Train what is not in the directory yet."""
    missing = [recipe for recipe in recipes if not is_stored(recipe, directory)]
    with multiprocessing.get_context("spawn").Pool(workers, _start) as pool:
        done = pool.imap_unordered(partial(_train, directory=directory, data=data), missing)
        for name in (bar := tqdm(done, total=len(missing), unit="run")):
            bar.set_postfix_str(name)


def _start() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _train(recipe: Recipe, *, directory: Path, data: Path | None) -> str:
    train(recipe, tasks(data)[recipe.task]).save(directory)
    return f"{recipe.task} {recipe.name}"
