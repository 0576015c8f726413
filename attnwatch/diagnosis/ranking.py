"""Ranking of the causes of a finding."""

import math
from collections.abc import Collection, Sequence

from attnwatch.diagnosis.causes.base import CauseRule, Clue
from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.verdict import Cause, Finding
from attnwatch.utils.messages import warn

MOST_CAUSES = 3
# Log odds of a cause that nobody has declared.
_SOMETHING_ELSE = 0.0
# Log odds that a note of a checkup adds to the cause of the same name.
_NOTED = 2.0
# Causes with a smaller share are not named.
_LEAST_SCORE = 0.02


class CauseSet:
    """Registered causes. A cause that fails is reported in one warning and not used again."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def reset(self) -> None:
        """Enable the causes that failed again, for a new training run."""
        self._failed.clear()

    def rank(
        self, run: RunCourse, checked: Sequence[Finding] = (), ruled_out: Collection[str] = ()
    ) -> tuple[Cause, ...]:
        """Return up to three causes, most likely first.

        If a checkup has found faults, only these are named. Causes that it has ruled out are left out.
        """
        facts = [_of_fact(finding) for finding in checked if not finding.is_note]
        if facts:
            return tuple(facts[:MOST_CAUSES])
        noted = {finding.kind.value: finding for finding in checked}
        clues = {}
        for name, rule in CauseRule.registry.items():
            found = None if name in ruled_out or name in self._failed else self._clues(rule, run)
            if found is not None:
                note = [Clue(f"the checkup noted: {noted[name].message}", _NOTED)] if name in noted else []
                clues[name] = [*note, *found]
        return _ranked(clues)

    def _clues(self, rule: CauseRule, run: RunCourse) -> list[Clue] | None:
        """Return the clues that a cause sees in a run; warn and return None if it fails."""
        try:
            clues = list(rule.look(run))
            wrong = [each for each in clues if not (isinstance(each, Clue) and math.isfinite(each.weight))]
            if wrong:
                raise TypeError(f"`look` must yield attnwatch.Clue with finite weights, got {wrong[0]!r:.200}")
        except Exception as error:
            self._failed.add(rule.name)
            warn(
                f"{CauseRule.registry.describe(rule)} failed; causes are ranked without it from now on: "
                f"{type(error).__name__}: {error}",
                once_for_all=True,
            )
            return None
        return clues


def _ranked(clues: dict[str, list[Clue]]) -> tuple[Cause, ...]:
    odds = {name: CauseRule.registry[name].prior + sum(each.weight for each in seen) for name, seen in clues.items()}
    total = _log_of_sum([_SOMETHING_ELSE, *odds.values()])
    best = sorted(odds, key=odds.__getitem__, reverse=True)[:MOST_CAUSES]
    causes = [_cause(CauseRule.registry[name], clues[name], math.exp(odds[name] - total)) for name in best]
    return tuple(cause for cause in causes if cause.score >= _LEAST_SCORE and cause.speaks_for)


def _cause(rule: CauseRule, clues: list[Clue], score: float) -> Cause:
    ordered = sorted(clues, key=lambda clue: -abs(clue.weight))
    return Cause(
        name=rule.name,
        score=score,
        speaks_for=tuple(clue.words for clue in ordered if clue.weight > 0),
        speaks_against=tuple(clue.words for clue in ordered if clue.weight < 0),
        title=rule.title,
        remedy=rule.remedy,
    )


def _of_fact(finding: Finding) -> Cause:
    """Return the cause that a checkup has found."""
    words = f"the checkup found it at step {finding.step}, see its finding"
    return Cause(finding.kind.value, 1.0, (words,), is_fact=True)


def _log_of_sum(odds: Sequence[float]) -> float:
    largest = max(odds)
    return largest + math.log(sum(math.exp(each - largest) for each in odds))
