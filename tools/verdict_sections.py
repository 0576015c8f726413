"""Tables about the verdicts, from the stored result of `python -m benchmarks.verdicts`."""

from collections import Counter
from typing import Any

from tools.markdown import table
from tools.results import machine, newest

_DIAGNOSE, _WITH_CHECKUP = "diagnose", "diagnose with the checkup"
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
    result = newest("verdicts")
    ever = result["ever_flagged_of_the_others"]
    detection, plateau, end = result["detection"], result["plateau"]["auroc"], result["capability"]
    rows = [
        {
            "": f"**{name}**" if name in (_DIAGNOSE, _WITH_CHECKUP) else name,
            "failing runs flagged at 10 / 25 / 50% of the budget": _row(detection[name], "recall", ".0%"),
            "of the others, flagged": _row(detection[name], "false_alarms", ".0%"),
            "AUROC at 10 / 25 / 50%": _row(detection[name], "auroc", ".2f"),
            "on the plateau": f"{plateau[name]:.2f}",
        }
        for name in (
            _DIAGNOSE,
            _WITH_CHECKUP,
            "its risk",
            "attention's signals alone",
            "layers' signals alone",
            "loss's signals alone",
            *_BASELINES,
        )
        if name in detection
    ]
    best = min(_BASELINES, key=lambda name: result["lead"][name]["mean"])
    lead = result["lead"][best]
    return table(
        rows,
        f"{result['runs']} small trainings of {len(result['tasks'])} tasks, {result['failed']} of which failed; "
        "each was judged with thresholds from other tasks and architectures. AUROC is the share of pairs of a failing "
        'and another run in which the failing one is called worse; "on the plateau" takes pairs whose losses cannot be '
        f"told apart. The quickest rule on the loss is {best}: the risk, with a threshold found alike, flags "
        f"the median failing run {lead['median']:.0%} of the budget earlier (quartiles {lead['low']:.0%} and "
        f"{lead['high']:.0%}), and of the others {ever['its risk']:.0%} at some time (that rule: {ever[best]:.0%}; "
        f"`diagnose`: {ever['diagnose']:.0%}). "
        "Rank correlation of what is foreseen at 25% with the accuracy at the end: "
        f"{end['diagnose']['0.25']:.2f}, of the loss {end['loss level']['0.25']:.2f}. "
        "`python -m benchmarks.verdicts` prints it.",
    )


def with_checkup() -> str:
    result = newest("verdicts")
    of, failing = result["checkup"], result["failed"]
    detection = {name: result["detection"][name] for name in (_DIAGNOSE, _WITH_CHECKUP)}
    without, with_it = (detection[name]["0.25"] for name in detection)
    alone, causes = of["alone"]["0.25"], of["first_cause_is_right"]
    alarms = Counter(kind for kinds in of["alarms_of_the_others"].values() for kind in kinds)
    found = ", ".join(f"`{kind}` {number}" for kind, number in alarms.most_common()) or "none"
    missed = [of["not_flagged"][share] for share in ("0.25", "0.5")]
    text = (
        f"At a quarter of the budget, `diagnose` flags {with_it['recall']:.0%} of the {failing} failing runs with the "
        f"checkup and {without['recall']:.0%} without it; of the others, {with_it['false_alarms']:.0%} and "
        f"{without['false_alarms']:.0%}. Most of those have a fault that did no harm in the end: of the "
        f"{of['sound_recipes']} sound recipes that did not fail, {len(of['flagged_sound_recipes']['0.25'])} are "
        f"flagged with the checkup. The checkup alone has an alarm in {alone['recall']:.0%} of the failing runs "
        f"and in {alone['false_alarms']:.0%} of the others (by kind: {found}). In the flagged failing runs with a "
        f"fault, the first cause at half of the budget is right in {causes['with']['right']} of "
        f"{causes['with']['runs']} with the checkup, and in {causes['without']['right']} of "
        f"{causes['without']['runs']} without it. The first losses of {of['with_the_stored_losses']} of the "
        f"{of['runs']} runs are the stored ones. Failing runs that are not flagged with the checkup:"
    )
    return f"{text}\n\n{table(_missed(*missed))}"


def _missed(quarter: dict[str, str], half: dict[str, str]) -> list[dict[str, str]]:
    """Return a row for each fault of the runs that are not flagged at a quarter of the budget."""
    faults: dict[str, list[str]] = {}
    for name in quarter:
        faults.setdefault(_fault_of(name), []).append(name)
    return [
        {
            "fault": fault,
            "runs not flagged at 25%": str(len(names)),
            "at 50%": str(sum(_fault_of(name) == fault for name in half)),
            "what the checkup says of them": "; ".join(dict.fromkeys(quarter[name] for name in names)),
        }
        for fault, names in sorted(faults.items())
    ]


def _fault_of(name: str) -> str:
    """Return the fault in the name of a run, as in "copy/opt-plain-one_batch-14"."""
    return name.partition("/")[2].split("-", 2)[2].rpartition("-")[0].replace("_", " ")


def tasks() -> str:
    return table(
        {
            "task": task,
            "runs": str(of["runs"]),
            "of sound recipes": str(of["sound_recipes"]),
            "failed": str(of["failed"]),
            "sound recipes that failed": str(of["failed_without_fault"]),
            "faults that did not matter": str(of["succeeded_with_fault"]),
        }
        for task, of in newest("verdicts")["tasks"].items()
    )


def detection() -> str:
    result = newest("verdicts")
    columns = {
        "failing runs flagged": "recall",
        "of the others, flagged": "false_alarms",
        "precision": "precision",
        "AUROC": "auroc",
        "AUROC within tasks": "auroc_within_tasks",
    }
    rows = [
        {"": name, "budget": words, **{column: f"{of[share][field]:.2f}" for column, field in columns.items()}}
        for name, of in result["detection"].items()
        for share, words in _SHARES.items()
    ]
    return table(rows, f"Measured on {machine(result)}.")


def foresight() -> str:
    result = newest("verdicts")
    plateau, rows = result["plateau"], []
    for name, value in plateau["auroc"].items():
        early, lead = result["capability"][name], result["lead"].get(name)
        shown = "–" if lead is None else f"{lead['median']:.0%} ({lead['low']:.0%} to {lead['high']:.0%})"
        rows.append(
            {
                "": name,
                "on the plateau": f"{value:.2f}",
                "rank correlation with the end at 10% / 25%": f"{early['0.1']:.2f} / {early['0.25']:.2f}",
                "flagged earlier by the risk (median)": shown,
                "of the others, ever flagged": f"{result['ever_flagged_of_the_others'][name]:.0%}",
            }
        )
    return table(rows, f"The plateau has {plateau['pairs']} pairs of {plateau['runs']} runs.")


def reliability() -> str:
    return table(
        {
            "mean risk": f"{each['told']:.2f}",
            "runs that failed": f"{each['happened']:.2f}",
            "looks": str(each["runs"]),
        }
        for each in newest("verdicts")["reliability"]
    )


def confusion() -> str:
    return table(
        {
            "fault": fault,
            "found first at half of the budget (runs)": ", ".join(
                f"{kind if kind == 'nothing' else f'`{kind}`'} {number}" for kind, number in found.items()
            ),
        }
        for fault, found in newest("verdicts")["confusion"].items()
    )


def kinds() -> str:
    return table(
        {
            "finding": f"`{kind}`",
            "runs that had it at half of the budget": str(each["runs"]),
            "of these failed": f"{each['failed']:.0%}",
        }
        for kind, each in newest("verdicts")["kinds"].items()
    )


def _row(of_shares: dict[str, dict[str, Any]], name: str, style: str) -> str:
    return " / ".join(f"{of_shares[share][name]:{style}}" for share in _SHARES)
