"""Tables of what the checkup names, from the results of the benchmark `checkup`."""

from collections.abc import Mapping
from typing import Any

from tools.markdown import table
from tools.results import machine, newest

_PARTS = {
    "all": "all",
    "tuned-on": "seen from the start",
    "blind-1": "of the first blind set",
    "blind-2": "of the second blind set",
    "blind-3": "of the third blind set",
    "blind-4": "of the fourth blind set",
    "blind-5": "of the fifth blind set",
}
# Result of the first run on each blind set, and the name of the set in it.
_BLIND = {f"checkup_blind_{number}": f"blind-{number}" for number in range(1, 6)} | {"checkup_blind_1": "held out"}
_LOOPS = {"plain": "plain loop", "Lightning": "Lightning", "Trainer": "transformers Trainer"}


def checkup() -> str:
    """Return the table of faults and sound scripts in each loop."""
    result = newest("checkup")
    totals = result["totals"]
    rows = [
        _row(loop, _PARTS[part], scores)
        for loop, parts in _parts(totals).items()
        for part, scores in parts.items()
        if scores["of_faults"]["scripts"]
    ]
    return table(
        rows,
        f"Macro-F1 {totals['macro_f1']:.2f} over all kinds of faults in plain loops. Tiny models, 12 steps, on "
        f"{machine(result)}: `python -m benchmarks.checkup`.",
    )


def checkup_blind() -> str:
    """Return the table of the first runs on faults that nobody had seen who wrote the checks."""
    results = {set_number: newest(name) for set_number, name in enumerate(_BLIND, 1)}
    rows = [
        {"set": str(number)} | _row(loop, "", parts[part]) | {"macro-F1": f"{parts[part]['macro_f1']:.2f}"}
        for (number, result), part in zip(results.items(), _BLIND.values(), strict=True)
        for loop, parts in _parts(result["totals"]).items()
    ]
    last = len(results)
    return table(rows, f"The last on {machine(results[last])}: `python -m benchmarks.checkup --part blind-{last}`.")


def checkup_programs() -> str:
    """Return the table of faults of one edit in complete programs, at first sight and now."""
    runs = {"at first sight": newest("programs_blind"), "after the misses were looked at": newest("programs")}
    rows = [
        {
            "": name,
            "programs": str(run["programs"]),
            "faults": str(run["faults"]),
            "named by the cause": f"{run['named'] / run['faults']:.0%}",
            "or by a note": f"{run['named_or_noted'] / run['faults']:.0%}",
            "noticed": f"{run['noticed'] / run['faults']:.0%}",
            "alarms in sound programs": f"{run['alarms']} of {run['sound']}",
        }
        for name, run in runs.items()
    ]
    return table(rows, f"100 steps each, on {machine(newest('programs'))}: `python -m benchmarks.programs`.")


def first_runs() -> list[dict[str, Any]]:
    """Return the scores of the first run on each blind set, in plain loops."""
    return [newest(name)["totals"]["parts"]["plain"][part] for name, part in _BLIND.items()]


def scripts_of_first_runs() -> list[dict[str, Any]]:
    """Return the scripts of the first run on each blind set. The oldest result has all scripts and marks these."""
    return [script for name in _BLIND for script in newest(name)["scripts"] if script.get("held_out", True)]


def checkup_beside() -> str:
    """Return the table of other ways to find the same faults."""
    result = newest("checkup")
    rows = [
        {
            "": name,
            "steps": "12" if name == "checkup" else steps,
            "named": "–" if scores["named"] is None else f"{scores['named']:.0%}",
            "noticed": f"{scores['noticed']:.0%} of {scores['faults']}",
            "alarms in sound scripts": f"{scores['sound_with_alarm']} of {scores['sound']}",
            "AUROC": "–" if scores["auroc"] is None else f"{scores['auroc']:.2f}",
        }
        for steps, ways in result["totals"].get("beside", {}).items()
        for name, scores in ways.items()
    ]
    return table(rows, f"On {machine(result)}.") if rows else "Not measured yet."


def _row(loop: str, part: str, scores: Mapping[str, Any]) -> dict[str, str]:
    of = scores["of_faults"]
    return {
        "trained by": _LOOPS[loop],
        "faults": f"{of['kinds_of_faults']} {part}".strip(),
        "scripts": str(of["scripts"]),
        "named by the cause": f"{of['named']:.0%}",
        "or by a note": f"{of['named_or_noted']:.0%}" if "named_or_noted" in of else "–",
        "noticed": f"{of['noticed']:.0%}",
        "alarms in sound scripts": f"{scores['sound_with_alarm']} of {scores['sound']}" if "sound" in scores else "–",
    }


def _parts(totals: Mapping[str, Any]) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Return the scores by loop and part; results from before there were trainers have plain loops only."""
    if "parts" in totals:
        return totals["parts"]
    sound = {"sound": totals["sound"], "sound_with_alarm": totals["sound_with_alarm"]}
    return {
        "plain": {
            part: {"of_faults": totals["faults"][part]} | (sound if part == "all" else {})
            for part in _PARTS
            if part in totals["faults"]
        }
    }
