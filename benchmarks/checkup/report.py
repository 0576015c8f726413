"""Table of the scripts and totals, printed and as they are stored."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from benchmarks.checkup.scores import Judged
from benchmarks.common import show


def print_faults(judged: Sequence[Judged]) -> None:
    """Print a line for each fault: on how many architectures it was named and noticed, and what was found instead."""
    show(f"{'fault':<52} {'named':>6} {'first':>6} {'noticed':>8}  step  missed on")
    faults = [each for each in judged if each.case.kinds]
    for name, group in groupby(faults, key=lambda each: each.case.name):
        of_fault = list(group)
        counts = [
            sum(values)
            for values in (
                [each.is_named for each in of_fault],
                [each.is_named_first for each in of_fault],
                [bool(each.alarms) for each in of_fault],
            )
        ]
        named, first, noticed = (f"{count}/{len(of_fault)}" for count in counts)
        steps = [each.step_named for each in of_fault if each.step_named is not None]
        missed = "; ".join(_missed(each) for each in of_fault if not each.is_named)
        step = str(max(steps)) if steps else "–"
        held_out = "*" if of_fault[0].case.is_held_out else ""
        show(f"{name + held_out:<52} {named:>6} {first:>6} {noticed:>8}  {step:>4}  {missed}")
    show("* nothing is tuned on it; step: the latest at which it was named\n")


def print_sound(judged: Sequence[Judged]) -> None:
    """Print a line for each sound script with an alarm or a note."""
    for script in judged:
        if not script.case.kinds and (script.outcome.findings or script.outcome.error):
            said = "; ".join(
                f"{'note' if each.is_note else 'ALARM'} {each.kind.value} at step {each.step}: {each.message}"
                for each in script.outcome.findings
            )
            error = f" (it failed with {script.outcome.error})" if script.outcome.error else ""
            show(f"sound: {script.case.name}, {script.case.architecture}: {said}{error}")


def print_totals(totals: dict[str, Any]) -> None:
    """Print the scores."""
    for name, part in totals["faults"].items():
        show(
            f"faults, {name}: {part['kinds_of_faults']} in {part['scripts']} scripts, named {part['named']:.1%} "
            f"(first {part['named_first']:.1%}), noticed {part['noticed']:.1%}"
        )
    show(
        f"sound: {totals['sound']} scripts, alarms in {totals['sound_with_alarm']}, "
        f"notes in {totals['sound_with_note']}"
    )
    show(f"macro-F1 {totals['macro_f1']:.3f} (kinds with a check {totals['macro_f1_of_checks']:.3f})")
    if totals["auroc"] is not None:
        show(f"AUROC of having a finding {totals['auroc']:.3f}")
    show(f"named at step: {totals['steps_named']}")
    show("F1: " + ", ".join(f"{kind} {score:.2f}" for kind, score in totals["f1"].items()))


def storable(judged: Judged) -> dict[str, Any]:
    """Return a script and what was found in it as JSON."""
    return {
        "name": judged.case.name,
        "architecture": judged.case.architecture,
        "kinds": list(judged.case.kinds),
        "held_out": judged.case.is_held_out,
        "found": judged.kinds,
        "notes": judged.notes,
        "step_named": judged.step_named,
        "not_checked": judged.reasons,
        "error": judged.outcome.error,
    }


def _missed(judged: Judged) -> str:
    """Say what was found in place of the fault, or why its checks were not done."""
    found = ", ".join(judged.kinds) or f"nothing{'; '.join(f' [{reason}]' for reason in judged.reasons)}"
    error = f", it failed: {judged.outcome.error[:80]}" if judged.outcome.error else ""
    return f"{judged.case.architecture} ({found}{error})"
