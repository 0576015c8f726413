"""Are the verdicts right? Judges stored trainings with known outcomes, on tasks that nothing was tuned on.

    python -m benchmarks.verdicts [--retrain [--data DIRECTORY] [--workers N]] [--quick] [--tune] [--out PATH]

Without options the stored runs are judged anew, in less than a minute. --retrain makes those that are missing (all: an
hour on two cores; with --data, digits and sentences are real: image/mnist.npz, text/sst2_train.tsv, text/sst2_dev.tsv).
--quick trains a handful and judges them by what the stored ones taught. --tune writes the risk model of the package,
from all tasks. Last line of the output: JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import attnwatch.diagnosis
from benchmarks.common import publish, results_path
from benchmarks.verdicts.attention import Signals
from benchmarks.verdicts.outcomes import failed
from benchmarks.verdicts.report import measure
from benchmarks.verdicts.retrain import retrain
from benchmarks.verdicts.runs import STORED, Recipe, load_all
from benchmarks.verdicts.tasks import tasks
from benchmarks.verdicts.tune import SHARES
from benchmarks.verdicts.zoo import recipes

_MODEL = Path(attnwatch.diagnosis.__file__).with_name("risk_model.json")
_QUICK = (
    Recipe("copy", "llama", seed=1000),
    Recipe("copy", "opt", "cosine", seed=1001),
    Recipe("recall", "qwen3", seed=1002),
    Recipe("copy", "llama", fault="queries and keys left out", seed=1003),
    Recipe("copy", "opt", fault="rate far too low", seed=1004),
    Recipe("recall", "qwen3", fault="weights decayed", seed=1005),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrain", action="store_true", help="train the runs that are not stored")
    parser.add_argument("--data", type=Path, help="directory with real digits and sentences")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=STORED, help="directory of the runs")
    parser.add_argument("--quick", action="store_true", help="train a handful: are the directions the same?")
    parser.add_argument("--tune", action="store_true", help="write the risk model of the package")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results, unless --quick)")
    options = parser.parse_args()
    if options.retrain:
        every = [recipe for task in tasks(options.data).values() for recipe in recipes(task)]
        retrain(every, options.runs, data=options.data, workers=options.workers)
    if options.quick:
        publish("verdicts", quick(options), options.out)
        return
    begin = time.perf_counter()
    runs = load_all(options.runs)
    if options.tune:
        write_model(runs)
    measured = measure(runs)
    print(f"\n{len(runs)} runs judged in {time.perf_counter() - begin:.0f} s.")
    publish("verdicts", measured, options.out or results_path("verdicts"))


def quick(options: argparse.Namespace) -> dict[str, float]:
    """Mean risk at half of the budget of some new sound runs, and of some with faults."""
    from attnwatch import diagnose

    with tempfile.TemporaryDirectory() as directory:
        retrain(_QUICK, Path(directory), data=options.data, workers=options.workers)
        runs = load_all(Path(directory))
    risks: dict[bool, list[float]] = {True: [], False: []}
    for run in runs:
        diagnosis = diagnose(run.until(0.5).history, total_steps=run.budget)
        risks[bool(run.recipe.fault)].append(diagnosis.risk)
        print(
            f"{run.name:<50} accuracy {run.quality:.3f}   at half of the budget: {diagnosis.status.value}, "
            f"risk {diagnosis.risk:.2f}"
        )
    sound, faulty = (sum(risks[fault]) / len(risks[fault]) for fault in (False, True))
    print("The faulty runs are told apart." if sound < faulty else "This is NOT what was measured before.")
    return {"risk_of_sound_runs": sound, "risk_of_faulty_runs": faulty}


def write_model(runs) -> None:
    """From all runs, at all shares."""
    outcomes = failed(runs)
    parts = {run.name: [run.until(share) for share in SHARES] for run in runs}
    model = Signals(parts, SHARES).tune(list(parts), outcomes)
    about = {"tuned_on": f"{len(runs)} runs of {len({run.recipe.task for run in runs})} tasks", **model.to_json()}
    _MODEL.write_text(json.dumps(about, indent=1) + "\n")
    print(f"Wrote {_MODEL.name}: {about['tuned_on']}, {sum(outcomes.values())} of them failed.")


if __name__ == "__main__":
    main()
