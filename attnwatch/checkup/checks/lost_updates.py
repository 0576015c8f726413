"""Updates that are lost when weights are rounded or changed back."""

import math
from collections.abc import Iterable
from statistics import median_high

import torch

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.updates import Update

_MOST_UNCHANGED = 0.6
# Averaging of weights, as in Lookahead, keeps half of an update.
_LEAST_KEPT = 0.2

_CHANGED_BACK = "Look for a restored copy, a projection or a moving average of the weights after optimizer.step()."


@register
class LostUpdates(Check):
    """Most updates are lost: they are too small for the precision of the weights, or are undone.

    A bfloat16 weight has 8 significant bits, so a change below 1/512 of its value is rounded away. Weights that are
    changed back after the steps, by restoring a copy or rounding to a grid, are reported too.
    """

    name = "lost_updates"
    severity = 0.6
    remedy = (
        "Keep the weights in float32 and use autocast, or use an optimizer with float32 master weights, stochastic "
        "rounding or Kahan summation."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        updates = step.updates.of_matrices()
        kept = {name: median_high(_known(float(each.kept) for each in of_steps)) for name, of_steps in updates.items()}
        middle = sorted(kept.values())[len(kept) // 2]
        if middle < _LEAST_KEPT:
            what = f"in half of the matrices, {max(middle, 0):.0%} or less of an update is left at the next update"
            what += ": something changes the weights back"
            return Fault(what, tuple(kept), {"share_kept": middle}, remedy=_CHANGED_BACK)
        coarse = {
            name: min(shares)
            for name, of_steps in updates.items()
            if of_steps[0].dtype in (torch.bfloat16, torch.float16)
            if (shares := [known for known in map(_share_unchanged, of_steps) if not math.isnan(known)])
        }
        middle = sorted(coarse.values())[len(coarse) // 2] if coarse else 0.0
        if middle < _MOST_UNCHANGED:
            return None
        dtype = str(updates[next(iter(coarse))][0].dtype).removeprefix("torch.")
        share = "all" if middle == 1 else f"at least {math.floor(100 * middle)}% of the"
        what = f"in half of the {dtype} matrices, {share} weights with a gradient stay the same in each step"
        return Fault(what, tuple(coarse), {"share_unchanged": middle})


def _share_unchanged(update: Update) -> float:
    return float(update.unchanged)


def _known(numbers: Iterable[float]) -> list[float]:
    """Return the numbers that are not nan; 1 if there are none, as for weights that the steps do not change."""
    return [number for number in numbers if not math.isnan(number)] or [1.0]
