"""Scores of predicted outcomes, on tasks and architectures that nothing was tuned on."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.verdicts.runs import Run

# Of the sound runs of the tuning tasks, a threshold may flag so many.
FALSE_ALARMS = 0.05
# A run is looked at whenever another twentieth of the budget is over.
LOOKS = tuple(float(share) for share in np.round(np.arange(1, 21) / 20, 2))

Numbers = Callable[[str], np.ndarray]
"""From the name of a run to a number at each of `LOOKS`, the higher the worse."""
Judge = Callable[[Sequence[str]], Numbers]
"""From the names of runs whose outcomes may be looked at, to numbers of any run."""


@dataclass
class Predictions:
    """Predictions of one way of judging, about runs of tasks and architectures that it was not tuned on.

    Attributes:
        numbers: of each run, by name: at each of `LOOKS`.
        flags: of each run: whether it is flagged there, by a threshold for that look.
        alarms: of each run: at which share of the budget it is first flagged, by one threshold for all looks; or 1.
    """

    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    flags: dict[str, np.ndarray] = field(default_factory=dict)
    alarms: dict[str, float] = field(default_factory=dict)


def predict_held_out(judge: Judge, failed: Mapping[str, bool]) -> Predictions:
    """Predict every outcome with numbers and thresholds that come from other tasks and architectures."""
    predictions = Predictions()
    for others, held_out in leave_one_out(failed):
        numbers = judge(others)
        sound = np.array([numbers(name) for name in others if not failed[name]])
        at_each, at_any = _threshold(sound), _threshold(sound.max(1, keepdims=True))[0]
        for name in held_out:
            predictions.numbers[name] = numbers(name)
            predictions.flags[name] = predictions.numbers[name] > at_each
            predictions.alarms[name] = first_look(predictions.numbers[name] > at_any)
    return predictions


def _threshold(sound: np.ndarray) -> np.ndarray:
    """Return the threshold that at most `FALSE_ALARMS` of the sound runs [runs, looks] exceed."""
    return np.sort(sound, axis=0)[len(sound) - 1 - int(FALSE_ALARMS * len(sound))]


def first_look(flags: np.ndarray) -> float:
    return LOOKS[int(flags.argmax())] if flags.any() else 1.0


def leave_one_out(names: Mapping[str, object]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield, for each task and architecture, the names of the runs that share neither, and of those that have both."""
    for task, architecture in sorted({(task_of(name), architecture_of(name)) for name in names}):
        others = [name for name in names if task_of(name) != task and architecture_of(name) != architecture]
        yield others, [name for name in names if (task_of(name), architecture_of(name)) == (task, architecture)]


def task_of(name: str) -> str:
    return name.split("/")[0]


def architecture_of(name: str) -> str:
    return name.split("/")[1].split("-")[0]


def detection(predictions: Predictions, failed: Mapping[str, bool], share: float) -> dict[str, float]:
    """Return recall, precision, false alarms, AUROC, and the mean AUROC of the tasks at a share of the budget."""
    look, names = LOOKS.index(share), list(failed)
    truth = np.array([failed[name] for name in names])
    flagged = np.array([predictions.flags[name][look] for name in names])
    numbers = np.array([predictions.numbers[name][look] for name in names])
    tasks = np.array([task_of(name) for name in names])
    of_tasks = [auroc(truth[tasks == task], numbers[tasks == task]) for task in sorted(set(tasks))]
    return {
        "recall": float(flagged[truth].mean()),
        "precision": float(truth[flagged].mean()) if flagged.any() else float("nan"),
        "false_alarms": float(flagged[~truth].mean()),
        "auroc": auroc(truth, numbers),
        "auroc_within_tasks": float(np.nanmean(of_tasks)),
    }


def auroc(truth: np.ndarray, numbers: np.ndarray) -> float:
    return float(roc_auc_score(truth, numbers)) if 0 < truth.sum() < len(truth) else float("nan")


def leads(predictions: Predictions, other: Predictions, failed: Mapping[str, bool]) -> np.ndarray:
    """Return by which share of the budget each failing run is flagged earlier than by another way of judging."""
    return np.array([other.alarms[name] - predictions.alarms[name] for name in failed if failed[name]])


def on_the_plateau(parts: Mapping[str, Sequence[Run]], failed: Mapping[str, bool]) -> list[tuple[str, str, int]]:
    """Return (failing run, sound run, look) before half of the budget that the loss does not tell apart.

    Both have the same model, neither loss has fallen by more than its noise lately, and the means of the last losses
    differ by less than two standard errors.
    """
    pairs = []
    for look in range(LOOKS.index(0.5) + 1):
        levels = {name: _level(seen[look]) for name, seen in parts.items() if _is_on_plateau(seen[look])}
        for failing, sound in itertools.product(levels, levels):
            if failed[failing] and not failed[sound] and _model(parts[failing][look]) == _model(parts[sound][look]):
                (loss, error), (other, other_error) = levels[failing], levels[sound]
                if abs(loss - other) < 2 * np.hypot(error, other_error):
                    pairs.append((failing, sound, look))
    return pairs


def _model(run: Run) -> tuple[str, str]:
    return run.recipe.task, run.recipe.architecture


def _lately(run: Run) -> np.ndarray:
    return run.losses[-max(len(run.losses) // 3, 10) :]


def _level(run: Run) -> tuple[float, float]:
    """Return the mean of the last losses, and its standard error."""
    lately = _lately(run)
    return float(lately.mean()), float(lately.std() / np.sqrt(len(lately)))


def _is_on_plateau(run: Run) -> bool:
    first, second = np.array_split(_lately(run), 2)
    return bool(first.mean() - second.mean() < _lately(run).std())


def on_plateau_auroc(predictions: Predictions, pairs: Sequence[tuple[str, str, int]]) -> float:
    """Return the share of pairs in which the failing run has the higher number (half where equal), mean over tasks."""
    of_tasks: dict[str, list[float]] = {}
    for failing, sound, look in pairs:
        difference = predictions.numbers[failing][look] - predictions.numbers[sound][look]
        of_tasks.setdefault(task_of(failing), []).append(0.5 + 0.5 * float(np.sign(difference)))
    return float(np.mean([np.mean(shares) for shares in of_tasks.values()]))


def capability(predictions: Predictions, reached: Mapping[str, float], share: float) -> float:
    """Return the rank correlation of predictions with what runs reach in the end, mean over tasks."""
    look, correlations = LOOKS.index(share), []
    for task in sorted({task_of(name) for name in reached}):
        names = [name for name in reached if task_of(name) == task]
        predicted = [-predictions.numbers[name][look] for name in names]
        correlations.append(spearmanr(predicted, [reached[name] for name in names]).statistic)
    return float(np.nanmean(correlations))
