"""Scores of a checkup: faults named and noticed, alarms in sound scripts, and the quality of each kind."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from sklearn.metrics import roc_auc_score

from attnwatch import Check, Finding
from benchmarks.checkup.scripts import Case, Outcome, Part

PLAIN = "plain"
PARTS: tuple[Part, ...] = get_args(Part)
# Kinds that are only ever notes.
_NOTES = {"labels_unrelated"}


@dataclass(frozen=True)
class Judged:
    """A script and what the checkup said about it.

    Attributes:
        case: the script.
        outcome: of its training.
        loop: plain loop or trainer that ran it.
    """

    case: Case
    outcome: Outcome
    loop: str = PLAIN

    @property
    def alarms(self) -> list[Finding]:
        """Findings that are no notes, most severe first."""
        return [each for each in self.outcome.findings if not each.is_note]

    @property
    def kinds(self) -> list[str]:
        """Kinds of the findings that count: alarms, and notes of kinds that are only ever notes."""
        counted = [each for each in self.outcome.findings if not each.is_note or each.kind.value in _NOTES]
        return list(dict.fromkeys(each.kind.value for each in counted))

    @property
    def notes(self) -> list[str]:
        return [each.kind.value for each in self.outcome.findings if each.is_note]

    @property
    def is_named(self) -> bool:
        """An alarm has a kind that names the fault."""
        return any(each.kind.value in self.case.kinds for each in self.alarms)

    @property
    def is_named_or_noted(self) -> bool:
        """An alarm or a note has a kind that names the fault."""
        return any(each.kind.value in self.case.kinds for each in self.outcome.findings)

    @property
    def is_named_first(self) -> bool:
        """The most severe alarm names the fault."""
        return any(each.kind.value in self.case.kinds for each in self.alarms[:1])

    @property
    def is_implemented(self) -> bool:
        """A check of the cause of the fault, or of another kind that names it, exists."""
        return any(kind in dict(Check.registry.items()) for kind in self.case.kinds)

    @property
    def step_named(self) -> int | None:
        """Step of the first finding that names the fault, notes too; None if none does."""
        return min((each.step for each in self.outcome.findings if each.kind.value in self.case.kinds), default=None)

    @property
    def reasons(self) -> list[str]:
        """Reasons why checks that could name the fault were not done."""
        return [self.outcome.skipped[kind] for kind in self.case.kinds if kind in self.outcome.skipped]

    @property
    def severity(self) -> float:
        return max((each.severity for each in self.alarms), default=0.0)


def _is_of_part(name: str, judged: Judged) -> bool:
    return judged.case.part == name


def totals(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return the scores of all scripts in plain loops, and of each loop and each part."""
    usual = [each for each in judged if not each.case.is_deliberate]
    plain = [each for each in usual if each.loop == PLAIN]
    faults = [each for each in plain if each.case.kinds]
    parts: dict[str, Callable[[Judged], bool]] = {
        "all": lambda each: True,
        **{name: partial(_is_of_part, name) for name in PARTS},
    }
    loops = list(dict.fromkeys(each.loop for each in usual))
    f1 = f1_of_kinds(plain)
    return scores_of(plain) | {
        "faults": {name: of_faults(list(filter(part, faults))) for name, part in parts.items()}
        | {"with a check": of_faults([each for each in faults if each.is_implemented])},
        "f1": f1,
        "macro_f1_of_checks": _mean(score for kind, score in f1.items() if kind in dict(Check.registry.items())),
        "failed": sum(bool(each.outcome.trained.error) for each in plain),
        "parts": {
            loop: {
                name: scores_of([each for each in usual if each.loop == loop and part(each)])
                for name, part in parts.items()
            }
            for loop in loops
        },
        "deliberate": {loop: _found_on_purpose(judged, loop) for loop in loops},
        "confusions": confusions(usual),
    }


def _found_on_purpose(judged: Sequence[Judged], loop: str) -> dict[str, int]:
    """Return how many deliberate scripts of a loop have a finding, by its kind."""
    deliberate = [each for each in judged if each.case.is_deliberate and each.loop == loop]
    return dict(Counter(kind for each in deliberate for kind in each.kinds or ["nothing"]))


def scores_of(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return the scores of faults and sound scripts together."""
    faults = [each for each in judged if each.case.kinds]
    sound = [each for each in judged if not each.case.kinds]
    steps = Counter(each.step_named for each in faults if each.step_named is not None)
    return {
        "of_faults": of_faults(faults),
        "sound": len(sound),
        "sound_with_alarm": sum(bool(each.alarms) for each in sound),
        "sound_with_note": sum(bool(each.notes) for each in sound),
        "sound_failed": sum(bool(each.outcome.trained.error) for each in sound),
        "macro_f1": _mean(f1_of_kinds(judged).values()),
        "auroc": auroc([bool(each.case.kinds) for each in judged], [each.severity for each in judged]),
        "steps_named": {str(step): count for step, count in sorted(steps.items())},
    }


def of_faults(faults: Sequence[Judged]) -> dict[str, Any]:
    return {
        "scripts": len(faults),
        "kinds_of_faults": len({each.case.name for each in faults}),
        "named": _mean(each.is_named for each in faults),
        "named_or_noted": _mean(each.is_named_or_noted for each in faults),
        "named_first": _mean(each.is_named_first for each in faults),
        "noticed": _mean(bool(each.alarms) for each in faults),
    }


def auroc(is_fault: Sequence[bool], severities: Sequence[float]) -> float | None:
    """Return the area under the ROC curve; None where all scripts are faulty or all are sound."""
    return float(roc_auc_score(is_fault, severities)) if 0 < sum(is_fault) < len(is_fault) else None


def confusions(judged: Iterable[Judged]) -> dict[str, int]:
    """Return how often one cause was taken for another, most often first: "cause -> kinds of the alarms"."""
    counts = Counter(
        f"{each.case.kinds[0]} -> {', '.join(sorted({alarm.kind.value for alarm in each.alarms}))}"
        for each in judged
        if each.case.kinds and each.alarms and not each.is_named
    )
    return dict(counts.most_common())


def f1_of_kinds(judged: Sequence[Judged]) -> dict[str, float]:
    """Return the F1 of each kind against all others, by script.

    A finding is right if it is one of the kinds that name the fault. Where none is, the kind of the cause was missed.
    """
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for each in judged:
        for kind in each.kinds:
            (right if kind in each.case.kinds else wrong)[kind] += 1
        if each.case.kinds and not set(each.kinds) & set(each.case.kinds):
            missed[each.case.kinds[0]] += 1
    kinds = sorted({*right, *wrong, *missed})
    return {kind: 2 * right[kind] / (2 * right[kind] + wrong[kind] + missed[kind]) for kind in kinds}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
