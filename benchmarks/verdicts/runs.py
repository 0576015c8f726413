"""Finished runs, and where they are kept."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from attnwatch import AttentionHistory

STORED = Path(__file__).parent / "runs"


@dataclass(frozen=True)
class Recipe:
    """What a run is made from: a task, one of its architectures, a sound setting, a fault ("": none), by name."""

    task: str
    architecture: str
    setting: str = "plain"
    fault: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        parts = (self.architecture, self.setting, self.fault or "sound", str(self.seed))
        return "-".join(part.replace(" ", "_") for part in parts)


@dataclass(frozen=True)
class Run:
    """What was seen of a run.

    Attributes:
        recipe: of the run.
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
        return f"{self.recipe.task}/{self.recipe.name}"

    def until(self, share: float) -> "Run":
        """What there was to see when this share of the budget was over."""
        last = share * self.budget
        history = self.history.at(self.history.steps < last)
        steps = slice(0, int(last))
        return replace(self, history=history, losses=self.losses[steps], gradient_norms=self.gradient_norms[steps])

    def save(self, directory: Path) -> None:
        folder = directory / self.recipe.task
        folder.mkdir(parents=True, exist_ok=True)
        rounded = {name: _rounded(values) for name, values in self.history.values.items()}
        history = AttentionHistory(
            self.history.steps, self.history.sites, rounded, self.history.loss, self.history.coverage
        )
        history.save(folder / f"{self.recipe.name}.npz")
        series = np.array([self.losses, self.gradient_norms], dtype=np.float32)
        np.savez_compressed(folder / f"{self.recipe.name}.steps.npz", series=_rounded(series))
        about = {**asdict(self.recipe), "budget": self.budget, "quality": self.quality, "chance": self.chance}
        (folder / f"{self.recipe.name}.json").write_text(json.dumps(about) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Run":
        """From its .json file."""
        about = json.loads(path.read_text())
        measured = {name: about.pop(name) for name in ("budget", "quality", "chance")}
        losses, norms = np.load(path.with_suffix(".steps.npz"))["series"].astype(np.float64)
        return cls(Recipe(**about), AttentionHistory.load(path.with_suffix(".npz")), losses, norms, **measured)


def load_all(directory: Path = STORED) -> list[Run]:
    return [Run.load(path) for path in sorted(directory.glob("*/*.json"))]


def _rounded(values: np.ndarray) -> np.ndarray:
    """To 16 bits of mantissa, which is below the noise of anything that is measured: smaller files."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(1 << 6)) & np.uint32(0xFFFFFF80)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values).astype(np.float32)


def is_stored(recipe: Recipe, directory: Path) -> bool:
    return (directory / recipe.task / f"{recipe.name}.json").exists()
