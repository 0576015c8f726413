"""Measurements on all runs, printed and returned."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnwatch.diagnosis import Diagnosis
from benchmarks.common import progress
from benchmarks.verdicts.attention import Rules, Signals, diagnoses
from benchmarks.verdicts.baselines import BASELINES, combined
from benchmarks.verdicts.checked import CheckedRun
from benchmarks.verdicts.outcomes import failed, relative_quality
from benchmarks.verdicts.runs import Run
from benchmarks.verdicts.scores import (
    LOOKS,
    Predictions,
    capability,
    detection,
    first_look,
    leads,
    leave_one_out,
    on_plateau_auroc,
    on_the_plateau,
    predict_held_out,
)
from benchmarks.verdicts.with_checkup import measure_checkup, print_checkup

_SHARES = (0.1, 0.25, 0.5)
DIAGNOSE, RISK, WITH_CHECKUP = "diagnose", "its risk", "diagnose with the checkup"
ATTENTION, LOSS, LAYERS = "attention's signals alone", "loss's signals alone", "layers' signals alone"
COMBINED = "rules on the loss, together"


def measure(runs: Sequence[Run], checked: Mapping[str, CheckedRun]) -> dict[str, Any]:
    """Return all that is measured on some runs.

    Args:
        runs: finished runs.
        checked: results of the checkup by name of the run; where one is missing, nothing is said of the checkup.
    """
    outcomes, reached = failed(runs), relative_quality(runs)
    parts = {run.name: [run.until(share) for share in LOOKS] for run in runs}
    signals = Signals(parts, LOOKS)
    diagnosed = held_out_diagnoses(parts, outcomes, signals)
    ways, of_checkup = predictions_of_all(parts, diagnosed, outcomes, signals), {}
    if all(run.name in checked for run in runs):
        with_checkup = held_out_diagnoses(parts, outcomes, signals, checked)
        ways = {DIAGNOSE: ways[DIAGNOSE], WITH_CHECKUP: as_diagnosed(with_checkup), **ways}
        of_checkup = {"checkup": measure_checkup(runs, checked, outcomes, diagnosed, with_checkup)}
    baselines = [name for name in ways if name in BASELINES or name == COMBINED]
    measured = {
        "runs": len(runs),
        "failed": sum(outcomes.values()),
        "tasks": _by_task(runs, outcomes),
        "detection": {
            name: {str(share): detection(way, outcomes, share) for share in _SHARES} for name, way in ways.items()
        },
        "lead": {name: _quartiles(leads(ways[RISK], ways[name], outcomes)) for name in (*baselines, LOSS)},
        "ever_flagged_of_the_others": {name: _ever_flagged(way, outcomes) for name, way in ways.items()},
        "plateau": _plateau(parts, outcomes, ways),
        "capability": {
            name: {str(share): capability(way, reached, share) for share in _SHARES[:2]} for name, way in ways.items()
        },
        "reliability": _reliability(ways[DIAGNOSE], outcomes),
        **_kinds(runs, diagnosed, outcomes),
        **of_checkup,
    }
    _print(measured)
    if of_checkup:
        print_checkup(measured["checkup"])
    return measured


def predictions_of_all(
    parts: Mapping[str, Sequence[Run]],
    diagnosed: Mapping[str, Sequence[Diagnosis]],
    outcomes: Mapping[str, bool],
    signals: Signals,
) -> dict[str, Predictions]:
    """Return the predictions of all ways of judging, each tuned on other tasks and architectures."""
    rules = Rules(parts)
    ways = {
        DIAGNOSE: as_diagnosed(diagnosed),
        RISK: predict_held_out(signals.judge(outcomes, rules), outcomes),
        ATTENTION: predict_held_out(signals.of("attention").judge(outcomes), outcomes),
        LAYERS: predict_held_out(signals.of("layers").judge(outcomes), outcomes),
        LOSS: predict_held_out(signals.of("loss").judge(outcomes), outcomes),
    }
    scores = {
        name: {run: np.array([score(part) for part in seen]) for run, seen in parts.items()}
        for name, score in BASELINES.items()
    }
    ways[COMBINED] = predict_held_out(combined(list(scores.values()), outcomes), outcomes)
    for name, numbers in scores.items():
        ways[name] = predict_held_out(lambda others, numbers=numbers: numbers.__getitem__, outcomes)
    return ways


def held_out_diagnoses(
    parts: Mapping[str, Sequence[Run]],
    outcomes: Mapping[str, bool],
    signals: Signals,
    checked: Mapping[str, CheckedRun] | None = None,
) -> dict[str, Sequence[Diagnosis]]:
    """Return the diagnoses of each run, by name, at each look, with a risk model of other tasks and architectures.

    Args:
        parts: parts of each run at each look, by name.
        outcomes: True for the runs that failed, by name.
        signals: signals of the parts.
        checked: results of the checkup by name of the run; None leaves them out.
    """
    checked, diagnosed = checked or {}, {}
    for others, held_out in leave_one_out(outcomes):
        model = signals.tune(others, outcomes)
        shown = progress(held_out, "diagnoses", keep=False)
        diagnosed |= {name: diagnoses(parts[name], model, checked.get(name)) for name in shown}
    return diagnosed


def as_diagnosed(diagnosed: Mapping[str, Sequence[Diagnosis]]) -> Predictions:
    """Return the predictions of `diagnose`, which decides itself when to flag."""
    predictions = Predictions()
    for name, each in diagnosed.items():
        predictions.flags[name] = np.array([diagnosis.status.is_alarm for diagnosis in each])
        # Where the risk is not known, nothing speaks against the run.
        predictions.numbers[name] = np.nan_to_num([diagnosis.risk for diagnosis in each], nan=0.0)
        predictions.alarms[name] = first_look(predictions.flags[name])
    return predictions


def _by_task(runs: Sequence[Run], outcomes: Mapping[str, bool]) -> dict[str, dict[str, int]]:
    tasks = sorted({run.recipe.task for run in runs})
    of = {task: [run for run in runs if run.recipe.task == task] for task in tasks}
    return {
        task: {
            "runs": len(of[task]),
            "sound_recipes": sum(not run.recipe.fault for run in of[task]),
            "failed": sum(outcomes[run.name] for run in of[task]),
            "failed_without_fault": sum(outcomes[run.name] and not run.recipe.fault for run in of[task]),
            "succeeded_with_fault": sum(not outcomes[run.name] and bool(run.recipe.fault) for run in of[task]),
        }
        for task in tasks
    }


def _plateau(parts, outcomes, ways) -> dict[str, Any]:
    pairs = on_the_plateau(parts, outcomes)
    return {
        "pairs": len(pairs),
        "runs": len({name for failing, sound, _ in pairs for name in (failing, sound)}),
        "auroc": {name: on_plateau_auroc(way, pairs) for name, way in ways.items()},
    }


def _ever_flagged(predictions: Predictions, outcomes: Mapping[str, bool]) -> float:
    """Return the share of the runs that did not fail but were flagged before the end: the price of a lead."""
    return float(np.mean([predictions.alarms[name] < 1 for name in outcomes if not outcomes[name]]))


def _quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"low": float(low), "median": float(median), "high": float(high), "mean": float(values.mean())}


def _reliability(predictions: Predictions, outcomes: Mapping[str, bool]) -> list[dict[str, float]]:
    """Return the share of runs that failed by reported risk, over the looks at 10, 25 and 50% of the budget."""
    looks = [LOOKS.index(share) for share in (0.1, 0.25, 0.5)]
    risks = np.array([predictions.numbers[name][look] for name in outcomes for look in looks])
    truth = np.array([outcomes[name] for name in outcomes for _ in looks])
    bins = []
    for low, high in zip((0, 0.2, 0.4, 0.6, 0.8), (0.2, 0.4, 0.6, 0.8, 1.01), strict=True):
        inside = (risks >= low) & (risks < high)
        if inside.any():
            told, happened = float(risks[inside].mean()), float(truth[inside].mean())
            bins.append({"told": told, "happened": happened, "runs": int(inside.sum())})
    return bins


def _kinds(
    runs: Sequence[Run], diagnosed: Mapping[str, Sequence[Diagnosis]], outcomes: Mapping[str, bool]
) -> dict[str, dict[str, Any]]:
    """Return, at half of the budget, first findings in failing runs of each fault, and how often findings are right."""
    look = LOOKS.index(0.5)
    confusion: dict[str, Counter] = {}
    right: dict[str, list[bool]] = {}
    for run in runs:
        kinds = [finding.kind.value for finding in diagnosed[run.name][look].findings if not finding.is_note]
        for kind in kinds:
            right.setdefault(kind, []).append(outcomes[run.name])
        if run.recipe.fault and outcomes[run.name]:
            confusion.setdefault(run.recipe.fault, Counter())[kinds[0] if kinds else "nothing"] += 1
    return {
        "confusion": {fault: dict(counter.most_common()) for fault, counter in sorted(confusion.items())},
        "kinds": {kind: {"runs": len(them), "failed": float(np.mean(them))} for kind, them in sorted(right.items())},
    }


def _print(measured: dict[str, Any]) -> None:
    print(
        f"{measured['runs']} runs, {measured['failed']} failed; each judged by thresholds from other tasks and models\n"
    )
    print(f"{'at the share of the budget':<28}" + "".join(f"{share:^32.0%}" for share in _SHARES))
    print(f"{'':<28}" + f"{'recall  precis.  false   AUROC':<32}" * 3)
    for name, of_shares in measured["detection"].items():
        cells = [
            f"{each['recall']:6.2f}  {each['precision']:6.2f}  {each['false_alarms']:6.2f}  {each['auroc']:6.2f}  "
            for each in of_shares.values()
        ]
        print(f"{name:<28}" + "".join(cells))
    plateau = measured["plateau"]
    print(
        f"\non the plateau of the loss ({plateau['runs']} runs)   AUROC     rank correlation with the end at 10%, 25%"
    )
    for name, value in plateau["auroc"].items():
        early = measured["capability"][name]
        print(f"{name:<44} {value:.2f}      {early['0.1']:.2f}, {early['0.25']:.2f}")
    print("\nflagged earlier by the risk than by … (share of the budget: median, quartiles)")
    for name, lead in measured["lead"].items():
        print(f"{name:<28} {lead['median']:.2f} [{lead['low']:.2f}, {lead['high']:.2f}]")
    print(
        "\nrisk told → share that failed: "
        + ", ".join(f"{each['told']:.2f} → {each['happened']:.2f} ({each['runs']})" for each in measured["reliability"])
    )
    print("\nfound first at half of the budget, in failing runs, by fault")
    for fault, found in measured["confusion"].items():
        print(f"{fault:<28} " + ", ".join(f"{kind} {number}" for kind, number in found.items()))
    print(
        "\nof runs with a finding, so many failed: "
        + ", ".join(f"{kind} {each['failed']:.2f} ({each['runs']})" for kind, each in measured["kinds"].items())
    )
