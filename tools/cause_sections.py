"""Tables about the causes of findings, from the stored result of `python -m benchmarks.causes`."""

from tools.markdown import table
from tools.results import machine, newest

_SETS = {
    "faults held out": "blind faults of `benchmarks.checkup`",
    "others": "faults on tasks and architectures of their own",
    "all": "both",
}


def causes_named() -> str:
    result = newest("causes")
    rows = [
        {
            "runs": words,
            "with a fault": str(each["runs"]),
            "with a finding": str(each["with_finding"]),
            "cause named first": f"{each['top1']:.0%}",
            "among the first three": f"{each['top3']:.0%}",
            "mean over faults": f"{each['top1_by_fault']:.0%}, {each['top3_by_fault']:.0%}",
            "same traces as one": f"{each['top1_same_traces_as_one']:.0%}, {each['top3_same_traces_as_one']:.0%}",
        }
        for name, words in _SETS.items()
        for each in [result["sets"][name]]
    ]
    return table(
        rows,
        f"Trainings of {result['steps']} steps ({machine(result)}). Shares are of runs with a finding. In the last "
        "column `not_in_optimizer`, `frozen_parameters` and `no_gradient` count as one.",
    )


def causes_right() -> str:
    return table(
        {
            "score (mean)": f"{each['told']:.2f}",
            "causes that were right": f"{each['right']:.2f}",
            "causes": str(each["causes"]),
        }
        for each in newest("causes")["reliability"]
    )
