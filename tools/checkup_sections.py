"""Table of what the checkup names, from the results of the benchmark `checkup`."""

from tools.markdown import table
from tools.results import machine, newest

_ROWS = {"all": "all faults", "tuned on": "faults that the checks were tuned on", "held out": "faults held out"}


def checkup() -> str:
    result = newest("checkup")
    totals = result["totals"]
    rows = [
        {
            "": words,
            "faults": str(totals["faults"][name]["kinds_of_faults"]),
            "scripts": str(totals["faults"][name]["scripts"]),
            "named by the cause": f"{totals['faults'][name]['named']:.0%}",
            "noticed": f"{totals['faults'][name]['noticed']:.0%}",
        }
        for name, words in _ROWS.items()
        if name in totals["faults"]
    ]
    return table(
        rows,
        f"Alarms in {totals['sound_with_alarm']} of {totals['sound']} sound scripts that look odd; macro-F1 "
        f"{totals['macro_f1']:.2f} over all kinds of faults. Tiny models of ten architectures in plain loops of 12 "
        f"steps, on {machine(result)}: `python -m benchmarks.checkup`.",
    )
