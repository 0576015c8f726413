"""Tables about the verdicts, from the stored result of `python -m benchmarks.verdicts`."""

from typing import Any

from results import machine, newest

_BASELINES = (
    "rules on the loss, together",
    "plateau",
    "early stopping",
    "loss slope",
    "loss level",
    "extrapolated loss",
    "spike of the loss",
    "spike of the gradient",
)
_SHARES = {"0.1": "10%", "0.25": "25%", "0.5": "50%"}


def verdicts() -> str:
    """The headline."""
    result = newest("verdicts")
    ever = result["ever_flagged_of_the_others"]
    detection, plateau, end = result["detection"], result["plateau"]["auroc"], result["capability"]
    rows = [
        "| | failing runs flagged at 10 / 25 / 50% of the budget | of the others, flagged | AUROC at 10 / 25 / 50% "
        "| on the plateau |",
        "|---|---|---|---|---|",
    ]
    for name in ("diagnose", "its risk", "attention's signals alone", "loss's signals alone", *_BASELINES):
        of = detection[name]
        shown = f"**{name}**" if name == "diagnose" else name
        rows.append(
            f"| {shown} | {_row(of, 'recall', '.0%')} | {_row(of, 'false_alarms', '.0%')} | {_row(of, 'auroc', '.2f')} "
            f"| {plateau[name]:.2f} |"
        )
    best = min(_BASELINES, key=lambda name: result["lead"][name]["mean"])
    lead = result["lead"][best]
    return "\n".join(
        [
            *rows,
            "",
            f"{result['runs']} small trainings of {len(result['tasks'])} tasks, {result['failed']} of which failed; "
            "every task was judged with thresholds of the other ones. AUROC is the share of pairs of a failing and "
            'another run in which the failing one is called worse; "on the plateau" takes pairs whose losses cannot be '
            f"told apart. The quickest rule on the loss is {best}: the risk, with a threshold found alike, flags "
            f"the median failing run {lead['median']:.0%} of the budget earlier (quartiles {lead['low']:.0%} and "
            f"{lead['high']:.0%}), and of the others {ever['its risk']:.0%} at some time (that rule: {ever[best]:.0%}; "
            f"`diagnose`: {ever['diagnose']:.0%}). "
            "Rank correlation of what is foreseen at 25% with the accuracy at the end: "
            f"{end['diagnose']['0.25']:.2f}, of the loss {end['loss level']['0.25']:.2f}. "
            "`python -m benchmarks.verdicts` prints it.",
        ]
    )


def tasks() -> str:
    result = newest("verdicts")
    rows = ["| task | runs | of sound recipes | failed | sound recipes that failed | faults that did not matter |"]
    rows.append("|---|---|---|---|---|---|")
    for task, of in result["tasks"].items():
        rows.append(
            f"| {task} | {of['runs']} | {of['sound_recipes']} | {of['failed']} | {of['failed_without_fault']} "
            f"| {of['succeeded_with_fault']} |"
        )
    return "\n".join(rows)


def detection() -> str:
    result = newest("verdicts")
    rows = ["| | budget | failing runs flagged | of the others, flagged | precision | AUROC | AUROC within tasks |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, of in result["detection"].items():
        for share, words in _SHARES.items():
            each = of[share]
            rows.append(
                f"| {name} | {words} | {each['recall']:.2f} | {each['false_alarms']:.2f} | {each['precision']:.2f} "
                f"| {each['auroc']:.2f} | {each['auroc_within_tasks']:.2f} |"
            )
    return "\n".join([*rows, "", f"Measured on {machine(result)}."])


def foresight() -> str:
    result = newest("verdicts")
    plateau = result["plateau"]
    rows = [
        "| | on the plateau | rank correlation with the end at 10% / 25% | flagged earlier by the risk (median) "
        "| of the others, ever flagged |",
        "|---|---|---|---|---|",
    ]
    for name, value in plateau["auroc"].items():
        early, lead = result["capability"][name], result["lead"].get(name)
        shown = "–" if lead is None else f"{lead['median']:.0%} ({lead['low']:.0%} to {lead['high']:.0%})"
        rows.append(
            f"| {name} | {value:.2f} | {early['0.1']:.2f} / {early['0.25']:.2f} | {shown} "
            f"| {result['ever_flagged_of_the_others'][name]:.0%} |"
        )
    return "\n".join([*rows, "", f"The plateau has {plateau['pairs']} pairs of {plateau['runs']} runs."])


def reliability() -> str:
    rows = ["| risk told (mean) | runs that failed | looks |", "|---|---|---|"]
    for each in newest("verdicts")["reliability"]:
        rows.append(f"| {each['told']:.2f} | {each['happened']:.2f} | {each['runs']} |")
    return "\n".join(rows)


def confusion() -> str:
    rows = ["| fault | found first at half of the budget (runs) |", "|---|---|"]
    for fault, found in newest("verdicts")["confusion"].items():
        rows.append(f"| {fault} | {', '.join(f'`{kind}` {number}' for kind, number in found.items())} |")
    return "\n".join(rows).replace("`nothing`", "nothing")


def kinds() -> str:
    rows = ["| finding | runs that had it at half of the budget | of these failed |", "|---|---|---|"]
    for kind, each in newest("verdicts")["kinds"].items():
        rows.append(f"| `{kind}` | {each['runs']} | {each['failed']:.0%} |")
    return "\n".join(rows)


def _row(of_shares: dict[str, dict[str, Any]], name: str, style: str) -> str:
    return " / ".join(f"{of_shares[share][name]:{style}}" for share in _SHARES)


def again() -> str:
    """All runs trained anew on another processor."""
    result = newest("verdicts_again")
    of, ever = result["detection"]["diagnose"], result["ever_flagged_of_the_others"]["diagnose"]
    lead = result["lead"]["early stopping"]
    return (
        f"All {result['runs']} were trained again on another processor ({machine(result)}; `--retrain`, the same "
        f"seeds): {result['failed']} failed. There `diagnose` flags {_row(of, 'recall', '.0%')} of the failing runs "
        f"and {_row(of, 'false_alarms', '.0%')} of the others at 10 / 25 / 50% of the budget, with an AUROC of "
        f"{_row(of, 'auroc', '.2f')}, {result['plateau']['auroc']['diagnose']:.2f} on the plateau, and flags "
        f"{ever:.0%} of the others at some time; the risk leads early stopping by {lead['median']:.0%} of the budget "
        "(median)."
    )


DETAILS = (verdicts, again, tasks, detection, foresight, kinds, confusion)
