"""Table of the scripts and totals, printed and as they are stored."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from benchmarks.checkup.scores import Judged
from benchmarks.checkup.scripts import STEPS, Outcome
from benchmarks.common import show

if TYPE_CHECKING:
    from benchmarks.checkup.work import Task


def print_all(judged: Sequence[Judged], totals: Mapping[str, Any]) -> None:
    """Print all tables."""
    for loop in dict.fromkeys(each.loop for each in judged):
        of_loop = [each for each in judged if each.loop == loop]
        _print_faults(of_loop, loop)
        _print_sound(of_loop)
    _print_parts(totals["parts"])
    show("F1 in plain loops: " + ", ".join(f"{kind} {score:.2f}" for kind, score in totals["f1"].items()))
    show(f"macro-F1 of kinds with a check: {totals['macro_f1_of_checks']:.3f}")
    for confusion, count in totals["confusions"].items():
        show(f"taken for another: {count:>3} × {confusion}")
    for loop, found in totals["deliberate"].items():
        show(f"done on purpose, {loop}: {', '.join(f'{kind} {count}' for kind, count in found.items()) or 'no script'}")
    for steps, ways in totals["beside"].items():
        _print_beside(steps, ways)


def print_cost(cost: Mapping[str, Mapping[str, float]]) -> None:
    """Print the time of the steps of each architecture with a checkup and without."""
    for name, each in cost.items():
        show(
            f"{name:<16} {STEPS} steps in {each['with_s']:.2f} s, "
            f"{each['without_s']:.2f} s without it ({each['ratio']:.1f})"
        )


def left_out(ended: Mapping["Task", Outcome | str]) -> dict[str, dict[str, int]]:
    """Return how many scripts each trainer did not run, by the reason."""
    reasons: dict[str, Counter[str]] = {}
    for task, outcome in ended.items():
        if isinstance(outcome, str):
            reasons.setdefault(task.way, Counter())[outcome] += 1
    return {way: dict(counts) for way, counts in reasons.items()}


def messages(judged: Sequence[Judged]) -> dict[str, dict[str, str]]:
    """Return what findings of each kind say: for each advice, what the first script with that fault shows."""
    said: dict[str, dict[str, str]] = {}
    for each in judged:
        for finding in each.alarms:
            if finding.kind.value in each.case.kinds:
                said.setdefault(finding.kind.value, {}).setdefault(finding.advice, finding.what)
    return said


def storable(judged: Judged) -> dict[str, Any]:
    """Return a script and what was found in it as JSON."""
    return {
        "name": judged.case.name,
        "architecture": judged.case.architecture,
        "loop": judged.loop,
        "kinds": list(judged.case.kinds),
        "part": judged.case.part,
        "deliberate": judged.case.is_deliberate,
        "found": [each.kind.value for each in judged.alarms],
        "notes": judged.notes,
        "step_named": judged.step_named,
        "not_checked": judged.reasons,
        "error": judged.outcome.trained.error,
    }


def _print_faults(judged: Sequence[Judged], loop: str) -> None:
    """Print a line for each fault: on how many architectures it was named and noticed, and what was found instead."""
    show(f"\n{loop + ': fault':<56} {'named':>6} {'noted':>6} {'first':>6} {'noticed':>8}  step  missed on")
    faults = [each for each in judged if each.case.kinds]
    for name, group in groupby(faults, key=lambda each: each.case.name):
        of_fault = list(group)
        counts = [
            f"{sum(values)}/{len(of_fault)}"
            for values in (
                [each.is_named for each in of_fault],
                [each.is_named_or_noted for each in of_fault],
                [each.is_named_first for each in of_fault],
                [bool(each.alarms) for each in of_fault],
            )
        ]
        steps = [each.step_named for each in of_fault if each.step_named is not None]
        missed = "; ".join(_missed(each) for each in of_fault if not each.is_named_or_noted)
        blind = "*" if of_fault[0].case.part != "tuned-on" else ""
        named, noted, first, noticed = counts
        step = str(max(steps)) if steps else "–"
        show(f"{name + blind:<56} {named:>6} {noted:>6} {first:>6} {noticed:>8}  {step:>4}  {missed}")
    show("* written blind; noted: named by an alarm or a note; step: the latest at which it was named")


def _print_sound(judged: Sequence[Judged]) -> None:
    """Print a line for each sound script with an alarm, a note or an error."""
    for script in judged:
        error = script.outcome.trained.error
        if not script.case.kinds and (script.outcome.findings or error):
            said = "; ".join(
                f"{'note' if each.is_note else 'ALARM'} {each.kind.value} at step {each.step}: {each.message}"
                for each in script.outcome.findings
            )
            failed = f" (it failed with {error})" if error else ""
            what = "on purpose" if script.case.is_deliberate else "sound"
            mark = "*" if script.case.part != "tuned-on" else ""
            show(f"{what}: {script.case.name}{mark}, {script.case.architecture}: {said}{failed}")


def _print_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    show(
        f"\n{'loop':<10} {'part':<9} {'faults':>6} {'scripts':>7} {'named':>6} {'+notes':>6} {'first':>6} "
        f"{'noticed':>7} {'sound':>6} {'alarms':>6} {'notes':>6} {'failed':>6} {'F1':>5} {'AUROC':>6}  named at step"
    )
    for loop, by_part in parts.items():
        for part, each in by_part.items():
            of = each["of_faults"]
            area = "–" if each["auroc"] is None else f"{each['auroc']:.3f}"
            show(
                f"{loop:<10} {part:<9} {of['kinds_of_faults']:>6} {of['scripts']:>7} {of['named']:>6.1%} "
                f"{of['named_or_noted']:>6.1%} {of['named_first']:>6.1%} {of['noticed']:>7.1%} {each['sound']:>6} "
                f"{each['sound_with_alarm']:>6} {each['sound_with_note']:>6} {each['sound_failed']:>6} "
                f"{each['macro_f1']:>5.2f} {area:>6}  "
                f"{each['steps_named']}"
            )


def _print_beside(steps: str, ways: Mapping[str, Mapping[str, Any]]) -> None:
    for way, each in ways.items():
        named = "–" if each["named"] is None else f"{each['named']:.1%}"
        length = f"{STEPS} steps" if way == "checkup" else f"{steps} steps"
        area = "–" if each["auroc"] is None else f"{each['auroc']:.3f}"
        show(
            f"{way} in {length}: named {named}, noticed {each['noticed']:.1%} of {each['faults']} faults, "
            f"alarms in {each['sound_with_alarm']} of {each['sound']} sound scripts, AUROC {area}"
        )


def _missed(judged: Judged) -> str:
    """Say what was found in place of the fault, or why its checks were not done."""
    reasons = "; ".join(f" [{reason}]" for reason in judged.reasons)
    found = ", ".join(judged.kinds) or f"nothing{reasons}"
    error = f", it failed: {judged.outcome.trained.error[:80]}" if judged.outcome.trained.error else ""
    return f"{judged.case.architecture} ({found}{error})"
