"""Scores of what finds faults without a checkup, on the same scripts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.checkup.baselines import is_bad_loss, names
from benchmarks.checkup.scores import Judged, auroc


@dataclass(frozen=True)
class Beside:
    """A script as the checkup, `diagnose` alone, and the rule for the loss saw it.

    Attributes:
        checkup: what the checkup found in the usual steps.
        diagnosed: what `diagnose` found in a training of as many steps, or of more.
    """

    checkup: Judged
    diagnosed: Judged


@dataclass(frozen=True)
class _Way:
    """A way to find faults: whether it names the fault of a script, and the severity of what it finds."""

    names: Callable[[Beside], bool] | None
    severity: Callable[[Beside], float]


def _is_named_by_diagnose(each: Beside) -> bool:
    return any(names(alarm, each.checkup.case.kinds) for alarm in each.diagnosed.alarms)


_WAYS = {
    "checkup": _Way(lambda each: each.checkup.is_named, lambda each: each.checkup.severity),
    "diagnose alone": _Way(_is_named_by_diagnose, lambda each: each.diagnosed.severity),
    "loss only": _Way(None, lambda each: float(is_bad_loss(each.diagnosed.outcome.trained.losses))),
}


def compared(seen: Sequence[Beside]) -> dict[str, dict[str, Any]]:
    """Return the scores of each way on the same scripts; the rule for the loss names nothing."""
    return {name: _scores(way, seen) for name, way in _WAYS.items()}


def _scores(way: _Way, seen: Sequence[Beside]) -> dict[str, Any]:
    faults = [each for each in seen if each.checkup.case.kinds]
    sound = [each for each in seen if not each.checkup.case.kinds]
    is_fault = [bool(each.checkup.case.kinds) for each in seen]
    return {
        "faults": len(faults),
        "sound": len(sound),
        "named": None if way.names is None else sum(map(way.names, faults)) / max(1, len(faults)),
        "noticed": sum(way.severity(each) > 0 for each in faults) / max(1, len(faults)),
        "sound_with_alarm": sum(way.severity(each) > 0 for each in sound),
        "auroc": auroc(is_fault, list(map(way.severity, seen))),
    }
