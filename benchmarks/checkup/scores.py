"""Scores of a checkup: faults named and noticed, alarms in sound scripts, and the quality of each kind."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.metrics import roc_auc_score

from attnwatch import Check, Finding
from benchmarks.checkup.scripts import Case, Outcome

# Kinds that are only ever notes, so that a note names the fault.
_NOTES = {"labels_unrelated"}


@dataclass(frozen=True)
class Judged:
    """A script and what the checkup said about it."""

    case: Case
    outcome: Outcome

    @property
    def alarms(self) -> list[Finding]:
        """Findings that are no notes, most severe first."""
        return [each for each in self.outcome.findings if not each.is_note]

    @property
    def kinds(self) -> list[str]:
        """Kinds of the findings that count."""
        counted = [each for each in self.outcome.findings if not each.is_note or each.kind.value in _NOTES]
        return list(dict.fromkeys(each.kind.value for each in counted))

    @property
    def notes(self) -> list[str]:
        return [each.kind.value for each in self.outcome.findings if each.is_note]

    @property
    def is_named(self) -> bool:
        """A finding has a kind that names the fault."""
        return bool(set(self.kinds) & set(self.case.kinds))

    @property
    def is_named_first(self) -> bool:
        """The most severe finding names the fault."""
        return self.kinds[:1] != [] and self.kinds[0] in self.case.kinds

    @property
    def is_implemented(self) -> bool:
        """A check of the cause of the fault, or of another kind that names it, exists."""
        return any(kind in dict(Check.registry.items()) for kind in self.case.kinds)

    @property
    def step_named(self) -> int | None:
        steps = [each.step for each in self.outcome.findings if each.kind.value in self.case.kinds]
        return min(steps, default=None) if self.is_named else None

    @property
    def reasons(self) -> list[str]:
        """Reasons why checks that could name the fault were not done, and notes that are no findings."""
        skipped = [self.outcome.skipped[kind] for kind in self.case.kinds if kind in self.outcome.skipped]
        return skipped + [f"a note: {kind}" for kind in self.notes if kind in self.case.kinds]

    @property
    def severity(self) -> float:
        return max((each.severity for each in self.alarms), default=0.0)


def totals(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return all scores of faults and sound scripts together."""
    faults = [each for each in judged if each.case.kinds]
    sound = [each for each in judged if not each.case.kinds]
    parts = {
        "all": faults,
        "tuned on": [each for each in faults if not each.case.is_held_out],
        "held out": [each for each in faults if each.case.is_held_out],
        "with a check": [each for each in faults if each.is_implemented],
    }
    f1 = f1_of_kinds(judged)
    is_fault = [bool(each.case.kinds) for each in judged]
    steps = Counter(each.step_named for each in faults if each.is_named)
    implemented = [score for kind, score in f1.items() if kind in dict(Check.registry.items())]
    return {
        "faults": {name: of_faults(part) for name, part in parts.items() if part},
        "sound": len(sound),
        "sound_with_alarm": sum(bool(each.alarms) for each in sound),
        "sound_with_note": sum(bool(each.notes) for each in sound),
        "macro_f1": _mean(f1.values()),
        "macro_f1_of_checks": _mean(implemented),
        "f1": f1,
        "auroc": roc_auc_score(is_fault, [each.severity for each in judged])
        if 0 < sum(is_fault) < len(judged)
        else None,
        "steps_named": {str(step): count for step, count in sorted(steps.items())},
        "failed": sum(bool(each.outcome.error) for each in judged),
    }


def of_faults(faults: Sequence[Judged]) -> dict[str, Any]:
    return {
        "scripts": len(faults),
        "kinds_of_faults": len({each.case.name for each in faults}),
        "named": _mean(each.is_named for each in faults),
        "named_first": _mean(each.is_named_first for each in faults),
        "noticed": _mean(bool(each.alarms) for each in faults),
    }


def f1_of_kinds(judged: Sequence[Judged]) -> dict[str, float]:
    """Return the F1 of each kind against all others, by script.

    A finding is right if it is one of the kinds that name the fault. Where none is, the kind of the cause was missed.
    """
    right, wrong, missed = Counter(), Counter(), Counter()
    for each in judged:
        for kind in each.kinds:
            (right if kind in each.case.kinds else wrong)[kind] += 1
        if each.case.kinds and not each.is_named:
            missed[each.case.kinds[0]] += 1
    kinds = sorted({*right, *wrong, *missed})
    return {kind: 2 * right[kind] / (2 * right[kind] + wrong[kind] + missed[kind]) for kind in kinds}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
