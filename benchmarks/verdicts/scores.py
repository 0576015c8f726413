"""How well outcomes are foreseen, on tasks that nothing was tuned on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.verdicts.runs import Run

SHARES = (0.1, 0.25, 0.5)
# Of the sound runs of the tuning tasks, a threshold may flag so many.
FALSE_ALARMS = 0.05
# A run is looked at whenever another so much of the budget is over.
_LOOK_EVERY = 0.05
LOOKS = tuple(np.round(np.arange(1, 21) * _LOOK_EVERY, 2))

Score = Callable[[Run], float]
Tune = Callable[[Sequence[Run], Mapping[str, bool]], Score]
"""From runs and whether they failed, by name, to a number of a run that is seen in part: the higher the worse."""


def untuned(score: Score) -> Tune:
    return lambda runs, failed: score


@dataclass
class Foresight:
    """Numbers that one way of judging gave runs of tasks that it was not tuned on.

    Attributes:
        scores: of each run, by name: at each of `LOOKS`.
        flags: of each run: whether it was flagged there, by a threshold of the other tasks for that look alone.
        alarms: of each run: at which share of the budget it was first flagged, by one threshold for all looks; or 1.
    """

    scores: dict[str, np.ndarray] = field(default_factory=dict)
    flags: dict[str, np.ndarray] = field(default_factory=dict)
    alarms: dict[str, float] = field(default_factory=dict)


def foresee(tune: Tune, parts: Mapping[str, Sequence[Run]], failed: Mapping[str, bool]) -> Foresight:
    """Leave one task out, for all tasks.

    Args:
        parts: of each run, by name: what was seen of it at each of `LOOKS`.
    """
    foresight = Foresight()
    for others, held_out in leave_one_task_out(parts):
        score = tune([part for name in others for part in parts[name]], failed)
        numbers = {name: np.array([score(part) for part in parts[name]]) for name in (*others, *held_out)}
        sound = np.array([numbers[name] for name in others if not failed[name]])
        each, any_look = _threshold(sound), _threshold(sound.max(1, keepdims=True))[0]
        for name in held_out:
            foresight.scores[name] = numbers[name]
            foresight.flags[name] = numbers[name] > each
            flagged = numbers[name] > any_look
            foresight.alarms[name] = LOOKS[flagged.argmax()] if flagged.any() else 1.0
    return foresight


def _threshold(sound: np.ndarray) -> np.ndarray:
    """Above it are at most `FALSE_ALARMS` of the sound runs [runs, looks]."""
    ordered = np.sort(sound, axis=0)
    return ordered[len(ordered) - 1 - int(FALSE_ALARMS * len(ordered))]


def leave_one_task_out(names: Mapping[str, object]) -> Iterator[tuple[list[str], list[str]]]:
    """(names of the other tasks' runs, names of this task's runs)."""
    tasks = sorted({name.split("/")[0] for name in names})
    for task in tasks:
        held_out = [name for name in names if name.startswith(f"{task}/")]
        yield [name for name in names if name not in set(held_out)], held_out


def at(share: float) -> int:
    return LOOKS.index(share)


def detection(foresight: Foresight, failed: Mapping[str, bool], share: float) -> dict[str, float]:
    """At a share of the budget: recall, precision, false alarms, and AUROC (of all runs, and the mean of the tasks')."""
    look = at(share)
    names = list(failed)
    truth = np.array([failed[name] for name in names])
    flagged = np.array([foresight.flags[name][look] for name in names])
    scores = np.array([foresight.scores[name][look] for name in names])
    tasks = np.array([name.split("/")[0] for name in names])
    of_tasks = [auroc(truth[tasks == task], scores[tasks == task]) for task in sorted(set(tasks))]
    return {
        "recall": float(flagged[truth].mean()),
        "precision": float(truth[flagged].mean()) if flagged.any() else float("nan"),
        "false_alarms": float(flagged[~truth].mean()),
        "auroc": auroc(truth, scores),
        "auroc_within_tasks": float(np.nanmean(of_tasks)),
    }


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else float("nan")


def lead(foresight: Foresight, other: Foresight, failed: Mapping[str, bool]) -> np.ndarray:
    """By how much of the budget the failing runs were flagged earlier than by another way of judging."""
    return np.array([other.alarms[name] - foresight.alarms[name] for name in failed if failed[name]])


def on_the_plateau(parts: Mapping[str, Sequence[Run]], failed: Mapping[str, bool]) -> list[tuple[str, int]]:
    """(run, look) up to half of the budget, where some run of the other outcome has the same loss within its noise."""
    found = []
    for look in range(at(0.5) + 1):
        level = {name: _level(run[look]) for name, run in parts.items()}
        for name, (mean, noise) in level.items():
            task = name.split("/")[0]
            partners = [
                other
                for other in level
                if other.startswith(f"{task}/")
                and failed[other] != failed[name]
                and abs(level[other][0] - mean) < max(noise, level[other][1])
            ]
            if partners and _is_plateau(parts[name][look]):
                found.append((name, look))
    return found


def _level(run: Run) -> tuple[float, float]:
    """Mean of the last losses, and the standard deviation of a step's."""
    last = run.losses[-max(len(run.losses) // 5, 10) :]
    return float(last.mean()), float(last.std())


def _is_plateau(run: Run) -> bool:
    """The loss does not fall by more than its noise in the last part of what was seen."""
    last = run.losses[-max(len(run.losses) // 5, 10) :]
    first, second = np.array_split(last, 2)
    return bool(first.mean() - second.mean() < last.std())


def capability(
    foresight: Foresight, reached: Mapping[str, float], share: float, *, names: Sequence[str] | None = None
) -> float:
    """Rank correlation of what is foreseen with what the run reaches in the end, mean over tasks."""
    look, correlations = at(share), []
    names = list(reached if names is None else names)
    for task in sorted({name.split("/")[0] for name in names}):
        of_task = [name for name in names if name.startswith(f"{task}/")]
        seen = [-foresight.scores[name][look] for name in of_task]
        correlations.append(spearmanr(seen, [reached[name] for name in of_task]).statistic)
    return float(np.nanmean(correlations))
