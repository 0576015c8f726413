"""Verdicts on the stored runs with the checkup of their first steps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnwatch.checkup.update_history import NUM_UPDATES
from attnwatch.diagnosis import Diagnosis
from benchmarks.common import show
from benchmarks.verdicts.checked import CheckedRun
from benchmarks.verdicts.faults import FAULTS, Setup
from benchmarks.verdicts.runs import Run
from benchmarks.verdicts.scores import LOOKS

Diagnoses = Mapping[str, Sequence[Diagnosis]]
"""Diagnoses by name of the run, at each of `LOOKS`."""
_SHARES = (0.25, 0.5)
# Names under which a fault counts as named: those of checks, which are those of causes too.
NAMES = {
    "rate too high": {"rate_too_high"},
    "rate far too high": {"rate_too_high"},
    "rate too low": {"rate_too_low"},
    "rate far too low": {"rate_too_low"},
    "no warm-up": {"rate_too_high"},
    "rate that rises": {"rate_too_high"},
    "queries and keys left out": {"not_in_optimizer"},
    "scale too small": {"wrong_attention_scale"},
    "scale too large": {"wrong_attention_scale"},
    "mask inverted": {"mask_inverted"},
    "mask ignored": {"padding_leak"},
    "positions missing": {"order_ignored"},
    "labels shuffled": {"labels_unrelated"},
    "weights decayed": {"weights_shrink"},
    "weights too large": {"initialisation"},
    "weights too small": {"initialisation"},
    "float16": {"nonfinite_gradient", "lost_updates"},
    "one batch": {"repeated_batch"},
}
# Checks of the changes by the first optimizer steps.
_OF_UPDATES = {"rate_too_high", "rate_too_low", "weights_shrink"}
# A rate that rises is not risen while it is below this share of what it will be.
_RISEN = 0.1


def measure_checkup(
    runs: Sequence[Run],
    checked: Mapping[str, CheckedRun],
    outcomes: Mapping[str, bool],
    without: Diagnoses,
    with_checkup: Diagnoses,
) -> dict[str, Any]:
    """Return what the checkup has found and what it adds.

    Args:
        runs: runs that were checked.
        checked: results of the checkup by name of the run.
        outcomes: True for the runs that failed, by name.
        without: diagnoses without the checkup.
        with_checkup: diagnoses that know what it has found.
    """
    missed = {
        str(share): {
            run.name: why_not_flagged(run, checked[run.name], share)
            for run in runs
            if outcomes[run.name] and not _is_flagged(with_checkup, run, share)
        }
        for share in _SHARES
    }
    others = [run for run in runs if not outcomes[run.name]]
    sound = [run for run in others if not run.recipe.fault]
    return {
        "runs": len(runs),
        "with_the_stored_losses": sum(checked[run.name].is_of(run) for run in runs),
        "seconds": sum(checked[run.name].seconds for run in runs),
        "alone": {str(share): _alone(runs, checked, outcomes, share) for share in _SHARES},
        "kinds": _kinds(runs, checked, outcomes),
        "alarms_of_the_others": {run.name: kinds for run in others if (kinds := _alarms(checked[run.name]))},
        "sound_recipes": len(sound),
        "flagged_sound_recipes": {
            str(share): [run.name for run in sound if _is_flagged(with_checkup, run, share)] for share in _SHARES
        },
        "not_flagged": missed,
        "first_cause_is_right": {
            "without": _named(runs, outcomes, without),
            "with": _named(runs, outcomes, with_checkup),
        },
    }


def why_not_flagged(run: Run, checked: CheckedRun, share: float) -> str:
    """Return the reason why the checkup does not flag a run whose fault it might have seen."""
    if not run.recipe.fault:
        return "no fault was made: the recipe is sound"
    setup = FAULTS[run.recipe.fault](Setup(1.0, 1))
    now, at_end = setup.schedule(share), setup.schedule(1.0)
    if now < _RISEN * at_end:
        return f"the rate has risen {now:,.0f}-fold so far, and rises {at_end:,.0f}-fold in the run"
    reasons = [_why_not(name, checked) for name in sorted(NAMES[run.recipe.fault])]
    judged = min(1.0, NUM_UPDATES / max(setup.warm_up * run.budget, 1))
    if judged < 1 and NAMES[run.recipe.fault] & _OF_UPDATES:
        reasons.append(f"in the {NUM_UPDATES} steps that it judges, the warm-up had reached {judged:.0%} of the rate")
    return "; ".join(reasons)


def _why_not(name: str, checked: CheckedRun) -> str:
    if any(finding.kind.value == name for finding in checked.findings):
        return f"`{name}` is a note"
    return f"`{name}`: {checked.skipped.get(name, 'nothing found')}"


def _alarms(checked: CheckedRun) -> list[str]:
    return sorted({finding.kind.value for finding in checked.findings if not finding.is_note})


def _is_flagged(diagnosed: Diagnoses, run: Run, share: float) -> bool:
    return diagnosed[run.name][LOOKS.index(share)].status.is_alarm


def _alone(
    runs: Sequence[Run], checked: Mapping[str, CheckedRun], outcomes: Mapping[str, bool], share: float
) -> dict[str, float]:
    """Return the shares of failing runs and of the others in which the checkup alone has an alarm by then."""
    flagged = {
        run.name: any(not finding.is_note for finding in checked[run.name].until(share * run.budget)) for run in runs
    }
    of = {truth: [flagged[name] for name in flagged if outcomes[name] is truth] for truth in (True, False)}
    return {"recall": float(np.mean(of[True])), "false_alarms": float(np.mean(of[False]))}


def _kinds(
    runs: Sequence[Run], checked: Mapping[str, CheckedRun], outcomes: Mapping[str, bool]
) -> dict[str, dict[str, Any]]:
    """Return in how many runs each kind of alarm was found, and what share of them failed."""
    found: dict[str, list[bool]] = {}
    for run in runs:
        for kind in _alarms(checked[run.name]):
            found.setdefault(kind, []).append(outcomes[run.name])
    return {kind: {"runs": len(of), "failed": float(np.mean(of))} for kind, of in sorted(found.items())}


def _named(runs: Sequence[Run], outcomes: Mapping[str, bool], diagnosed: Diagnoses) -> dict[str, Any]:
    """Return, of the failing runs with a fault that are flagged at half of the budget, how many first causes are right.

    The first cause is that of the first finding; a fault that the checkup has found is the cause itself.
    """
    counts: Counter[bool] = Counter()
    for run in runs:
        diagnosis = diagnosed[run.name][LOOKS.index(0.5)]
        if run.recipe.fault and outcomes[run.name] and diagnosis.status.is_alarm:
            first = diagnosis.findings[0]
            cause = first.causes[0].name if first.causes else first.kind.value
            counts[cause in NAMES[run.recipe.fault]] += 1
    return {"runs": counts.total(), "right": counts[True]}


def print_checkup(measured: Mapping[str, Any]) -> None:
    """Print what was measured."""
    show(
        f"\nthe first steps of {measured['runs']} runs were trained again with a checkup; "
        f"{measured['with_the_stored_losses']} of them have the stored losses"
    )
    for share, alone in measured["alone"].items():
        show(
            f"the checkup alone, at {float(share):.0%} of the budget: alarms in {alone['recall']:.1%} of the failing "
            f"runs, and in {alone['false_alarms']:.1%} of the others"
        )
    kinds = (f"{kind} {each['failed']:.2f} ({each['runs']})" for kind, each in measured["kinds"].items())
    show(f"of the runs with an alarm of the checkup, so many failed: {', '.join(kinds)}")
    show("alarms of the checkup in the others:")
    for name, found in measured["alarms_of_the_others"].items():
        show(f"  {name}: {', '.join(found)}")
    for share, flagged in measured["flagged_sound_recipes"].items():
        show(
            f"of the {measured['sound_recipes']} sound recipes that did not fail, flagged with the checkup at "
            f"{float(share):.0%} of the budget: {', '.join(flagged) or 'none'}"
        )
    for share, missed in measured["not_flagged"].items():
        show(f"failing runs that are not flagged at {float(share):.0%} of the budget, with the checkup: {len(missed)}")
        for name, reason in missed.items():
            show(f"  {name}: {reason}")
    for way, each in measured["first_cause_is_right"].items():
        show(f"first cause is right, {way} the checkup: {each['right']} of {each['runs']} flagged failing runs")
