"""Finished runs, and the files that keep them: one for each task."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attnwatch import AttentionHistory
from attnwatch.layers import LayerStatistic
from attnwatch.statistics import Statistic
from attnwatch.utils.files import replaced_file
from attnwatch.utils.rounding import rounded

FORMAT = 2
# Fewer than this are below the noise of anything that is measured, and files get smaller.
_MANTISSA_BITS = 16


@dataclass(frozen=True)
class Recipe:
    """Specification of a run: a task, one of its architectures, a sound setting, and a fault ("": none), by name."""

    task: str
    architecture: str
    setting: str = "plain"
    fault: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """Identifier among all runs, such as "copy/opt-plain-sound-14"."""
        parts = (self.architecture, self.setting, self.fault or "sound", str(self.seed))
        return f"{self.task}/" + "-".join(part.replace(" ", "_") for part in parts)


@dataclass(frozen=True)
class Run:
    """A finished training, or the part of it that was over at some time.

    Attributes:
        recipe: specification of the run.
        history: 100 observations, evenly spread over the budget.
        losses, gradient_norms: of each step.
        budget: steps that there were; a run whose loss was lost ended before.
        quality: accuracy at the end, on data that the run has not seen.
        chance: accuracy of always saying the most frequent label.
    """

    recipe: Recipe
    history: AttentionHistory
    losses: np.ndarray
    gradient_norms: np.ndarray
    budget: int
    quality: float
    chance: float

    @property
    def name(self) -> str:
        return self.recipe.name

    def until(self, share: float) -> "Run":
        """Return what there was to see when this share of the budget was over."""
        last = share * self.budget
        history = self.history.at(self.history.steps < last)
        steps = slice(0, int(last))
        return replace(self, history=history, losses=self.losses[steps], gradient_norms=self.gradient_norms[steps])


class RunStore(Mapping[str, Run]):
    """Runs by name in a folder with one .npz file for each task, read when they are looked up.

    The array `runs` of a file is JSON: its format, and of each run everything but its arrays. These are

    - `RUN/statistics`: float32 [statistics, observations, sites, heads];
    - `RUN/layers`: float32 [layer statistics, observations, sites];
    - `RUN/steps` and `RUN/loss`: int64 and float64 [observations];
    - `RUN/series`: float32 [2, steps], losses and gradient norms.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __getitem__(self, name: str) -> Run:
        path = self._file_of(name)
        if not path.exists():
            raise KeyError(name)
        with np.load(path, allow_pickle=False) as file:
            about = _about_runs(file)[name]
            values = _columns(Statistic.registry, about["statistics"], file[f"{name}/statistics"])
            layers = _columns(LayerStatistic.registry, about["layers"], file[f"{name}/layers"])
            steps, loss = file[f"{name}/steps"], file[f"{name}/loss"]
            history = AttentionHistory(steps, tuple(about["sites"]), values, loss, about["coverage"], layers=layers)
            losses, norms = file[f"{name}/series"].astype(np.float64)
        return Run(Recipe(**about["recipe"]), history, losses, norms, **about["outcome"])

    def __iter__(self) -> Iterator[str]:
        for path in sorted(self._folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                names = sorted(_about_runs(file))
            yield from names

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def add(self, run: Run) -> None:
        """Write the file of the run's task with this run; the old file stays until the new one is complete."""
        path = self._file_of(run.name)
        runs, arrays = {}, {}
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                runs, arrays = _about_runs(file), {name: file[name] for name in file.files if name != "runs"}
        history = run.history
        layers = np.empty((len(history.layers), len(history), len(history.sites)), np.float32)
        for row, column in zip(layers, history.layers.values(), strict=True):
            row[:] = column
        runs[run.name] = {
            "recipe": asdict(run.recipe),
            "outcome": {"budget": run.budget, "quality": run.quality, "chance": run.chance},
            "statistics": list(history.values),
            "layers": list(history.layers),
            "sites": history.sites,
            "coverage": dict(history.coverage),
        }
        arrays |= {
            f"{run.name}/statistics": rounded(np.stack(list(history.values.values())), _MANTISSA_BITS),
            f"{run.name}/layers": rounded(layers, _MANTISSA_BITS),
            f"{run.name}/steps": history.steps,
            f"{run.name}/loss": history.loss,
            f"{run.name}/series": rounded(np.array([run.losses, run.gradient_norms]), _MANTISSA_BITS),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as stream:
            np.savez_compressed(stream, runs=np.array(json.dumps({"format": FORMAT, "runs": runs})), **arrays)

    def _file_of(self, name: str) -> Path:
        return self._folder / f"{name.partition('/')[0]}.npz"


STORED = RunStore(Path(__file__).parent / "runs")


def _columns(registry: Iterable[str], names: Sequence[str], arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Return arrays by name; those of a registry that were not recorded then are nan."""
    unknown = np.full(arrays.shape[1:], np.nan, np.float32)
    return dict.fromkeys(registry, unknown) | dict(zip(names, arrays, strict=True))


def _about_runs(file: np.lib.npyio.NpzFile) -> dict[str, dict[str, Any]]:
    """Return what a file says of each run, by name.

    Raises:
        ValueError: it has another format.
    """
    header = json.loads(str(file["runs"]))
    if header["format"] != FORMAT:
        raise ValueError(f"the file of runs has format {header['format']}; this version reads format {FORMAT}.")
    return header["runs"]
