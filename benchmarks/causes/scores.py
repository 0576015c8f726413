"""Scores of the causes that are named first."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnwatch import CauseRule, Diagnosis
from benchmarks.checkup.scripts import Case

# Mistakes whose traces in a history are the same: weights that are not updated, though gradients may exist.
_SAME_TRACES = ("not_in_optimizer", "frozen_parameters", "no_gradient")
# A cause of which `no_gradient` is the name in words.
_NAMED = {"broken_gradient_path": "no_gradient"}
_BINS = (0.0, 0.25, 0.5, 0.75, 1.01)


@dataclass(frozen=True)
class Ranked:
    """A script with a fault, and what was said about its history.

    Attributes:
        case: the script.
        diagnosis: at the end of the run.
    """

    case: Case
    diagnosis: Diagnosis

    @property
    def is_found(self) -> bool:
        """A finding bears on the status."""
        return any(not finding.is_note for finding in self.diagnosis.findings)

    @property
    def causes(self) -> list[tuple[str, float]]:
        """Names and scores of the causes of the first finding, most likely first."""
        first = next((finding for finding in self.diagnosis.findings if not finding.is_note), None)
        return [] if first is None else [(cause.name, cause.score) for cause in first.causes]

    @property
    def truth(self) -> set[str]:
        """Names under which the fault counts as named."""
        return names_of(self.case)

    def is_named(self, most: int, *, as_groups: bool = False) -> bool:
        """Return whether the fault is among the first causes.

        Args:
            most: number of causes.
            as_groups: causes with the same traces count as one.
        """
        truth = self.truth
        if as_groups and truth & {*_SAME_TRACES}:
            truth = truth | {*_SAME_TRACES}
        return bool(truth & {name for name, _ in self.causes[:most]})


def names_of(case: Case) -> set[str]:
    """Return the names of causes that name a fault."""
    return {_NAMED.get(kind, kind) for kind in case.kinds} & {*CauseRule.registry}


def summary(ranked: Sequence[Ranked]) -> dict[str, Any]:
    """Return how often the fault was named, in runs with a finding, by runs and by faults."""
    found = [each for each in ranked if each.is_found]
    faults = {each.case.name: [other for other in found if other.case.name == each.case.name] for each in found}
    return {
        "runs": len(ranked),
        "with_finding": len(found),
        "faults_with_finding": len(faults),
        "top1": _share(found, lambda each: each.is_named(1)),
        "top3": _share(found, lambda each: each.is_named(3)),
        "top1_by_fault": _mean_of(faults, lambda each: each.is_named(1)),
        "top3_by_fault": _mean_of(faults, lambda each: each.is_named(3)),
        "top1_same_traces_as_one": _share(found, lambda each: each.is_named(1, as_groups=True)),
        "top3_same_traces_as_one": _share(found, lambda each: each.is_named(3, as_groups=True)),
    }


def reliability(ranked: Sequence[Ranked]) -> list[dict[str, float]]:
    """Return how often a cause with such a score is right, over all causes that were named."""
    pairs = [(score, name in each.truth) for each in ranked if each.is_found for name, score in each.causes]
    bins = []
    for low, high in itertools.pairwise(_BINS):
        inside = [(score, is_right) for score, is_right in pairs if low <= score < high]
        if inside:
            told = sum(score for score, _ in inside) / len(inside)
            right = sum(is_right for _, is_right in inside) / len(inside)
            bins.append({"told": told, "right": right, "causes": len(inside)})
    return bins


def _share(ranked: Sequence[Ranked], holds: Callable[[Ranked], bool]) -> float:
    return sum(map(holds, ranked)) / len(ranked) if ranked else float("nan")


def _mean_of(faults: Mapping[str, Sequence[Ranked]], holds: Callable[[Ranked], bool]) -> float:
    shares = [_share(ranked, holds) for ranked in faults.values()]
    return sum(shares) / len(shares) if shares else float("nan")
