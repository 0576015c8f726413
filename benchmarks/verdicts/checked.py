"""Findings of the checkup in the first steps of the stored runs, trained again by their recipes."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnwatch import Finding, TrainingCheckup
from attnwatch.checkup.later_points import later_point
from attnwatch.utils.files import replaced_file
from benchmarks.verdicts.runs import Recipe, Run
from benchmarks.verdicts.tasks import Task
from benchmarks.verdicts.train import Training

FORMAT = 1
_MOST_OF_BUDGET = 0.25
# Number of steps at the later point in which checks look again.
_LATER_STEPS = 5


@dataclass(frozen=True)
class CheckedRun:
    """Result of the checkup of a run's first steps.

    Attributes:
        findings: faults and notes, most severe first.
        ruled_out: names of the faults that facts rule out.
        skipped: reason why a check could not be done, by name of the check.
        losses: loss of each step that was trained; tells whether they are the steps of the stored run.
        seconds: time that these steps took with the checkup.
    """

    findings: tuple[Finding, ...]
    ruled_out: frozenset[str]
    skipped: Mapping[str, str]
    losses: tuple[float, ...]
    seconds: float

    @property
    def num_steps(self) -> int:
        """Number of steps that were trained."""
        return len(self.losses)

    def until(self, step: float) -> list[Finding]:
        """Return the findings of the steps before this one."""
        return [finding for finding in self.findings if finding.step < step]

    def is_of(self, run: Run) -> bool:
        """Return whether the losses are those of the stored run, apart from rounding, in the first ten steps."""
        number = min(10, len(self.losses), len(run.losses))
        return bool(np.allclose(self.losses[:number], run.losses[:number], rtol=1e-3, equal_nan=True))


def num_steps(budget: int) -> int:
    """Return how many steps of a run are checked: up to the checkup's later look, at most a quarter of the budget."""
    return min(math.ceil(later_point(budget)) + _LATER_STEPS, int(_MOST_OF_BUDGET * budget))


def check(recipe: Recipe, task: Task) -> CheckedRun:
    """Train the first steps of a recipe with a checkup, which knows that no batch should come twice in the run."""
    begin, training = time.perf_counter(), Training(recipe, task)
    known = {"total_steps": task.steps, "steps_per_epoch": task.steps}
    with TrainingCheckup(training.model, optimizers=training.optimizer, **known) as checkup:
        for step in range(num_steps(task.steps)):
            training.step(checkup.step(step))
            if training.is_lost:
                break
    return CheckedRun(
        tuple(checkup.findings),
        checkup.ruled_out,
        dict(checkup.skipped),
        tuple(training.losses),
        time.perf_counter() - begin,
    )


class CheckedRuns(Mapping[str, CheckedRun]):
    """Results of the checkup by name of the run, in a JSON file.

    Args:
        path: file that holds them; none are there if it does not exist.
    """

    def __init__(self, path: Path):
        self._path = path
        self._runs: dict[str, dict[str, Any]] = {}
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"{path} has format {content['format']}; this version reads format {FORMAT}.")
            self._runs = content["runs"]

    def __getitem__(self, name: str) -> CheckedRun:
        stored = self._runs[name]
        findings = tuple(map(Finding.from_json, stored["findings"]))
        return CheckedRun(
            findings, frozenset(stored["ruled_out"]), stored["skipped"], tuple(stored["losses"]), stored["seconds"]
        )

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._runs))

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, name: str, checked: CheckedRun) -> None:
        """Write the file with this run; the old file stays until the new one is complete."""
        self._runs[name] = {
            "findings": [finding.as_json() for finding in checked.findings],
            "ruled_out": sorted(checked.ruled_out),
            "skipped": checked.skipped,
            "losses": [float(f"{loss:.5g}") for loss in checked.losses],
            "seconds": round(checked.seconds, 1),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(run)}" for name, run in sorted(self._runs.items()))
        with replaced_file(self._path) as stream:
            stream.write(f'{{"format": {FORMAT}, "runs": {{\n{lines}\n}}}}\n'.encode())


CHECKED = CheckedRuns(Path(__file__).parent / "checked.json")
