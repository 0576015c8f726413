"""Trainings of edited programs, in several processes."""

import contextlib
import io
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from attnwatch import Finding
from benchmarks.common import quiet_libraries
from benchmarks.programs.edits import Edit, load

STEPS = 100


@dataclass(frozen=True)
class Outcome:
    """Findings of the checkup of an edited program.

    Attributes:
        findings: of the checkup.
        error: of the program; empty if it ended.
        seconds: of the training.
    """

    findings: Sequence[Finding] = ()
    error: str = ""
    seconds: float = 0.0

    @property
    def alarms(self) -> list[str]:
        """Kinds of the findings that are no notes."""
        return [each.kind.value for each in self.findings if not each.is_note]

    def names(self, edit: Edit) -> bool:
        """An alarm has a kind that names the fault."""
        return any(kind in edit.kinds for kind in self.alarms)

    def notes(self, edit: Edit) -> bool:
        """A finding, or a note, has a kind that names the fault."""
        return any(each.kind.value in edit.kinds for each in self.findings)


def done(edits: Sequence[Edit], workers: int) -> Iterator[tuple[Edit, Outcome]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin) as pool:
        futures = {pool.submit(outcome_of, edit): edit for edit in edits}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _begin() -> None:
    torch.set_num_threads(1)  # the models are too small for more
    quiet_libraries()


def outcome_of(edit: Edit, steps: int = STEPS) -> Outcome:
    """Train an edited program with its checkup."""
    begin = time.perf_counter()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            tempfile.TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            checkup = load(edit, Path(folder))(steps)
    except Exception as raised:  # is told with the program; the others go on
        return Outcome(error=f"{type(raised).__name__}: {raised}", seconds=time.perf_counter() - begin)
    return Outcome(checkup.findings, seconds=time.perf_counter() - begin)
